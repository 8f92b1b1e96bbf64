//! The set-metadata filter: puts fixed values into dynamic metadata.

use std::sync::Arc;

use prost_types::{Any, Struct, Value, value::Kind};
use proto::envoy::extensions::filters::http::set_metadata::v3 as wire;

use crate::http::headers::RequestHeaders;
use crate::http::stream::Stream;
use crate::invalid::{Invalid, try_all};
use crate::stat_group;

use super::{FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter};

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.set_metadata.v3.Config",
    name: "envoy.filters.http.set_metadata",
    build,
    routes: &[],
};

stat_group! {
    /// `http.<prefix>.set_metadata.…`
    struct SetMetadataStats { overwrite_denied: Counter }
}

struct Entry {
    namespace: String,
    value: Struct,
    allows_overwrite: bool,
}

#[derive(Clone)]
struct Filter(Arc<(Vec<Entry>, Arc<SetMetadataStats>)>);

fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config: wire::Config = super::unpack(any)?;
    let mut entries = try_all("metadata", &config.metadata, |metadata| {
        if metadata.typed_value.is_some() {
            return Err(Invalid::unsupported("typed_value"));
        }
        if metadata.metadata_namespace.is_empty() {
            return Err(Invalid::new("a metadata_namespace is needed"));
        }
        Ok(Entry {
            namespace: metadata.metadata_namespace.clone(),
            value: metadata.value.clone().unwrap_or_default(),
            allows_overwrite: metadata.allow_overwrite,
        })
    })?;
    #[allow(deprecated, reason = "control planes still send the single form")]
    if let Some(value) = config
        .value
        .filter(|_| !config.metadata_namespace.is_empty())
    {
        // The older form always merges.
        entries.insert(
            0,
            Entry {
                namespace: config.metadata_namespace,
                value,
                allows_overwrite: true,
            },
        );
    }
    let stats = context.scope.scope("set_metadata").group();
    Ok(Arc::new(Filter(Arc::new((entries, stats)))))
}

impl FilterFactory for Filter {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(self.clone()))
    }
}

impl HttpFilter for Filter {
    fn decode_headers(&mut self, _: &mut RequestHeaders, stream: &mut Stream) -> FilterStatus {
        let (entries, stats) = &*self.0;
        for entry in entries {
            let present = stream.info.metadata.get(&entry.namespace);
            if present.is_some() && !entry.allows_overwrite {
                stats.overwrite_denied.inc();
                continue;
            }
            let mut merged = present.cloned().unwrap_or_default();
            merge(&mut merged, &entry.value);
            stream.info.metadata.merge(entry.namespace.clone(), merged);
        }
        FilterStatus::Continue
    }
}

/// Structs are merged field by field, lists joined, everything else replaced.
fn merge(into: &mut Struct, more: &Struct) {
    for (key, value) in &more.fields {
        match (into.fields.get_mut(key).map(|v| &mut v.kind), &value.kind) {
            (Some(Some(Kind::StructValue(old))), Some(Kind::StructValue(new))) => merge(old, new),
            (Some(Some(Kind::ListValue(old))), Some(Kind::ListValue(new))) => {
                old.values.extend(new.values.iter().cloned());
            }
            _ => {
                let value: Value = value.clone();
                into.fields.insert(key.clone(), value);
            }
        }
    }
}
