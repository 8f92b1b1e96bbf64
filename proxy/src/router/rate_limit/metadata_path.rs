//! Where in the metadata a rate limit's setting or a descriptor's value is.

use prost_types::value::Kind;
use proto::envoy::r#type::metadata::v3::{MetadataKey, metadata_key};
use proto::envoy::r#type::v3::RateLimitUnit;

use crate::invalid::{Invalid, try_all};
use crate::matcher::value_at;
use crate::stream_info::StreamInfo;

/// A filter's name, and the way to a value.
#[derive(Debug)]
pub(super) struct MetadataPath {
    pub(super) filter: Box<str>,
    pub(super) path: Vec<Box<str>>,
}

impl MetadataPath {
    /// Checks a key.
    pub(super) fn try_new(key: Option<&MetadataKey>) -> Result<Self, Invalid> {
        let key = key.ok_or_else(|| Invalid::new("a metadata_key is needed"))?;
        let path = try_all("path", &key.path, |segment| match &segment.segment {
            Some(metadata_key::path_segment::Segment::Key(key)) => Ok(key.as_str().into()),
            Some(metadata_key::path_segment::Segment::Index(_)) => {
                Err(Invalid::unsupported("an index in a path"))
            }
            None => Err(Invalid::new("a path segment needs a key")),
        })?;
        Ok(MetadataPath {
            filter: key.key.as_str().into(),
            path,
        })
    }

    /// The limit that stands there: requests and `RateLimitUnit`.
    pub(super) fn limit(&self, info: &StreamInfo) -> Option<(u32, i32)> {
        let fields = info.metadata.get(&self.filter)?;
        let Some(Kind::StructValue(limit)) = &value_at(fields, &self.path)?.kind else {
            return None;
        };
        let Some(Kind::NumberValue(requests)) = &limit.fields.get("requests_per_unit")?.kind else {
            return None;
        };
        let Some(Kind::StringValue(unit)) = &limit.fields.get("unit")?.kind else {
            return None;
        };
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a float is cut to the range by `as`"
        )]
        Some((*requests as u32, RateLimitUnit::from_str_name(unit)?.into()))
    }
}
