//! Metadata: whose, and which value of it.

use prost_types::{Struct, Value, value};

use crate::invalid::Invalid;
use crate::matcher::value_at;
use crate::stream_info::StreamInfo;

use super::json_value::{write_json_text, write_struct, write_value};
use super::truncate;

/// Whose metadata.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owner {
    /// What filters have noted.
    Stream,
    Route,
    VirtualHost,
    Cluster,
    Host,
    Listener,
    FilterChain,
}

/// A value, or all values, of a namespace.
#[derive(Debug, Clone)]
pub(super) struct MetadataPath {
    owner: Owner,
    namespace: Box<str>,
    path: Vec<Box<str>>,
}

impl MetadataPath {
    /// `NAMESPACE` or `NAMESPACE:KEY…`.
    pub(super) fn parse(owner: Owner, argument: &str) -> Result<Self, Invalid> {
        let mut keys = argument.split(':');
        let namespace = keys.next().filter(|namespace| !namespace.is_empty());
        Ok(MetadataPath {
            owner,
            namespace: namespace
                .ok_or_else(|| Invalid::new("a metadata namespace is needed"))?
                .into(),
            path: keys.map(Into::into).collect(),
        })
    }

    /// `OWNER:NAMESPACE…`.
    pub(super) fn parse_owned(argument: &str) -> Result<Self, Invalid> {
        let (owner, path) = argument
            .split_once(':')
            .ok_or_else(|| Invalid::new("a type and a namespace are needed"))?;
        let owner = match owner {
            "DYNAMIC" => Owner::Stream,
            "ROUTE" => Owner::Route,
            "VIRTUAL_HOST" => Owner::VirtualHost,
            "CLUSTER" => Owner::Cluster,
            "UPSTREAM_HOST" => Owner::Host,
            "LISTENER" => Owner::Listener,
            "LISTENER_FILTER_CHAIN" => Owner::FilterChain,
            other => {
                return Err(Invalid::new(format!(
                    "{other} is not a supported type of metadata"
                )));
            }
        };
        MetadataPath::parse(owner, path)
    }

    /// Appends the value as text: a text stands without quotes. False when there is none.
    pub(super) fn write(&self, info: &StreamInfo, out: &mut String) -> bool {
        self.find(info).is_some_and(|found| match found {
            Found::Value(Value {
                kind: Some(value::Kind::StringValue(text)),
            }) => {
                out.push_str(text);
                true
            }
            found => found.write(out),
        })
    }

    /// Appends the value as JSON, a text cut to the limit; false when there is none.
    pub(super) fn write_json(
        &self,
        info: &StreamInfo,
        limit: Option<usize>,
        out: &mut String,
    ) -> bool {
        self.find(info).is_some_and(|found| match found {
            Found::Value(Value {
                kind: Some(value::Kind::StringValue(text)),
            }) => {
                let mut text = text.clone();
                truncate(&mut text, 0, limit);
                write_json_text(&text, out);
                true
            }
            found => found.write(out),
        })
    }

    fn find<'a>(&self, info: &'a StreamInfo) -> Option<Found<'a>> {
        let fields = self.fields(info)?;
        if self.path.is_empty() {
            return Some(Found::All(fields));
        }
        value_at(fields, &self.path).map(Found::Value)
    }

    fn fields<'a>(&self, info: &'a StreamInfo) -> Option<&'a Struct> {
        let metadata = match self.owner {
            Owner::Stream => return info.metadata.get(&self.namespace),
            Owner::Route => info.route.as_ref()?.route().metadata.as_deref(),
            Owner::VirtualHost => info.route.as_ref()?.virtual_host().metadata.as_deref(),
            Owner::Cluster => (info.upstream.cluster.as_ref()?.config).metadata.as_deref(),
            Owner::Host => info.upstream.host.as_ref()?.metadata.as_deref(),
            Owner::Listener => info.connection.listener_metadata.as_deref(),
            Owner::FilterChain => info.connection.chain.as_ref()?.wire.metadata.as_ref(),
        };
        metadata?.filter_metadata.get(self.namespace.as_ref())
    }
}

enum Found<'a> {
    All(&'a Struct),
    Value(&'a Value),
}

impl Found<'_> {
    fn write(&self, out: &mut String) -> bool {
        match self {
            Found::All(fields) => write_struct(fields, out),
            Found::Value(value) => write_value(value, out),
        }
        true
    }
}
