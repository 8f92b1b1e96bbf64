//! Listener filters: what is learnt about a connection before its filter chain is chosen.
//!
//! The bytes they look at are kept and read first by the transport. A filter is a row of [`build`].

mod http_inspector;
mod original_dst;
mod original_src;
mod proxy_protocol;
mod tls_inspector;

use crate::{
    config::Discovered,
    filter_state::Setters,
    invalid::{At as _, Invalid},
    listener::{ConnectionInfo, ListenerContext},
    stat_group,
    stats::Scope,
};
use bytes::{Bytes, BytesMut};
use prost_types::Any;
use proto::envoy::{
    config::core::v3::ExtensionConfigSource,
    config::listener::v3::{
        ListenerFilter as Wire, ListenerFilterChainMatchPredicate as Predicate,
        listener_filter::ConfigType, listener_filter_chain_match_predicate::Rule,
    },
    extensions::filters::listener::{
        http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst,
        original_src::v3::OriginalSrc, proxy_protocol::v3::ProxyProtocol,
        set_filter_state::v3::Config as SetFilterState,
        tls_inspector::v3::TlsInspector as TlsInspectorWire,
    },
};
use std::{io, ops::Range, sync::Arc};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

/// The most that is read ahead.
const MOST_AHEAD: usize = 64 << 10;

stat_group! {
    /// `tls_inspector.…`
    pub(crate) struct TlsInspectorStats {
        alpn_found: Counter, alpn_not_found: Counter, client_hello_too_large: Counter, sni_found: Counter, sni_not_found: Counter, tls_found: Counter, tls_not_found: Counter,
    }
}

stat_group! {
    /// `http_inspector.…`
    pub(crate) struct HttpInspectorStats {
        http10_found: Counter, http11_found: Counter, http2_found: Counter, http_not_found: Counter, read_error: Counter,
    }
}

/// A checked listener filter.
pub(crate) struct ListenerFilter {
    filter: Filter,
    disabled: Option<Disabled>,
}

enum Filter {
    /// As its listener says.
    Fixed(Kind),
    /// As its own configuration says (ECDS).
    Discovered(Arc<Discovered<Kind>>),
}

enum Kind {
    OriginalDst,
    OriginalSrc(original_src::Options),
    TlsInspector(tls_inspector::Options),
    HttpInspector(Arc<HttpInspectorStats>),
    ProxyProtocol(proxy_protocol::Options),
    SetFilterState(Setters),
}

/// For which connections a filter is off.
enum Disabled {
    Any,
    DestinationPort(Range<u32>),
    Not(Box<Disabled>),
    AnyOf(Vec<Disabled>),
    AllOf(Vec<Disabled>),
}

/// A connection whose first bytes are looked at.
pub(crate) struct Accepted {
    /// The socket.
    pub(crate) stream: TcpStream,
    /// What was read and is yet to be served.
    pub(crate) ahead: BytesMut,
}

/// What a parser wants after a look at the bytes.
enum Look<T> {
    /// More bytes.
    More,
    /// It knows.
    Done(T),
}

impl Accepted {
    /// A connection of which nothing has been read.
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            ahead: BytesMut::new(),
        }
    }

    /// The socket and the bytes read ahead.
    pub(crate) fn into_parts(self) -> (TcpStream, Bytes) {
        (self.stream, self.ahead.freeze())
    }

    /// Lets `parse` look at the first bytes until it knows; `None` if it does not get to know; an error when the client leaves before that.
    async fn look<T>(&mut self, mut parse: impl FnMut(&[u8]) -> Look<T>) -> io::Result<Option<T>> {
        loop {
            if !self.ahead.is_empty()
                && let Look::Done(found) = parse(&self.ahead)
            {
                return Ok(Some(found));
            }
            if self.ahead.len() >= MOST_AHEAD {
                return Ok(None);
            }
            if self.stream.read_buf(&mut self.ahead).await? == 0 {
                // As in Envoy: who leaves before it is known what he wants is not served.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl ListenerFilter {
    /// The filter that restores the original destination.
    pub(crate) fn original_dst() -> Self {
        Self {
            filter: Filter::Fixed(Kind::OriginalDst),
            disabled: None,
        }
    }

    /// Whether it is that filter.
    pub(crate) fn is_original_dst(&self) -> bool {
        matches!(self.filter, Filter::Fixed(Kind::OriginalDst))
    }

    /// Whether there is a configuration; where it comes by itself there may be none yet.
    pub(crate) fn is_configured(&self) -> bool {
        match &self.filter {
            Filter::Fixed(_) => true,
            Filter::Discovered(discovered) => discovered.load().is_some(),
        }
    }

    /// Learns what it can about `accepted` into `info`; an error closes the connection.
    pub(crate) async fn inspect(
        &self,
        accepted: &mut Accepted,
        info: &mut ConnectionInfo,
    ) -> io::Result<()> {
        if self
            .disabled
            .as_ref()
            .is_some_and(|disabled| disabled.matches(info))
        {
            return Ok(());
        }
        match &self.filter {
            Filter::Fixed(kind) => kind.inspect(accepted, info).await,
            Filter::Discovered(discovered) => match discovered.load() {
                Some(kind) => kind.inspect(accepted, info).await,
                // Taken away since the connection came.
                None => Err(io::Error::other("no configuration")),
            },
        }
    }
}

impl Kind {
    async fn inspect(&self, accepted: &mut Accepted, info: &mut ConnectionInfo) -> io::Result<()> {
        match self {
            Kind::OriginalDst => {
                original_dst::restore(&accepted.stream, info);
                Ok(())
            }
            Kind::OriginalSrc(options) => {
                original_src::note(options, info);
                Ok(())
            }
            Kind::TlsInspector(options) => tls_inspector::inspect(options, accepted, info).await,
            Kind::HttpInspector(stats) => http_inspector::inspect(accepted, info, stats).await,
            Kind::SetFilterState(setters) => {
                setters.set_on_connection(info, false);
                Ok(())
            }
            Kind::ProxyProtocol(options) => proxy_protocol::inspect(options, accepted, info).await,
        }
    }
}

impl Disabled {
    fn matches(&self, info: &ConnectionInfo) -> bool {
        match self {
            Self::Any => true,
            Self::DestinationPort(range) => range.contains(&u32::from(info.local_address.port())),
            Self::Not(inner) => !inner.matches(info),
            Self::AnyOf(all) => all.iter().any(|one| one.matches(info)),
            Self::AllOf(all) => all.iter().all(|one| one.matches(info)),
        }
    }
}

impl TryFrom<&Predicate> for Disabled {
    type Error = Invalid;

    fn try_from(wire: &Predicate) -> Result<Self, Invalid> {
        Ok(
            match wire
                .rule
                .as_ref()
                .ok_or_else(|| Invalid::new("a rule is needed"))?
            {
                Rule::AnyMatch(_) => Self::Any,
                Rule::DestinationPortRange(range) => {
                    let port = |value: i32| u32::try_from(value).unwrap_or(0);
                    Self::DestinationPort(port(range.start)..port(range.end))
                }
                Rule::NotMatch(inner) => {
                    Self::Not(Box::new(Self::try_from(inner.as_ref()).at("not_match")?))
                }
                Rule::OrMatch(set) => Self::AnyOf(
                    set.rules
                        .iter()
                        .map(Self::try_from)
                        .collect::<Result<_, _>>()
                        .at("or_match")?,
                ),
                Rule::AndMatch(set) => Self::AllOf(
                    set.rules
                        .iter()
                        .map(Self::try_from)
                        .collect::<Result<_, _>>()
                        .at("and_match")?,
                ),
            },
        )
    }
}

/// Checks a listener filter; its statistics are below the root, as those of all listeners.
pub(crate) fn build(wire: &Wire, context: &ListenerContext<'_>) -> Result<ListenerFilter, Invalid> {
    let root = &context.server.stats;
    let filter = match &wire.config_type {
        Some(ConfigType::TypedConfig(any)) => Filter::Fixed(kind(&wire.name, any, root)?),
        Some(ConfigType::ConfigDiscovery(discovery)) => {
            Filter::Discovered(subscribe(&wire.name, discovery, context).at("config_discovery")?)
        }
        None => Filter::Fixed(kind(&wire.name, &Any::default(), root)?),
    };
    let disabled = wire
        .filter_disabled
        .as_ref()
        .map(Disabled::try_from)
        .transpose()
        .at("filter_disabled")?;
    Ok(ListenerFilter { filter, disabled })
}

/// Subscribes to the configuration of the filter called `name`.
fn subscribe(
    name: &str,
    discovery: &ExtensionConfigSource,
    context: &ListenerContext<'_>,
) -> Result<Arc<Discovered<Kind>>, Invalid> {
    let (own, root) = (name.to_owned(), context.server.stats.clone());
    let build = move |any: &Any| kind(&own, any, &root);
    Discovered::try_new(name, discovery, context.extensions, context.used, build)
}

/// What a filter does, by its message; without one, by its name.
fn kind(name: &str, any: &Any, root: &Scope) -> Result<Kind, Invalid> {
    let message = proto::type_url::message_name(&any.type_url);
    let is = |known: &str, kind: &str| {
        if message.is_empty() {
            name == known
        } else {
            message == kind
        }
    };
    let kind = if is(
        "envoy.filters.listener.original_dst",
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
    ) {
        check::<OriginalDst>(any)?;
        Kind::OriginalDst
    } else if is(
        "envoy.filters.listener.original_src",
        "envoy.extensions.filters.listener.original_src.v3.OriginalSrc",
    ) {
        Kind::OriginalSrc((&check::<OriginalSrc>(any)?).into())
    } else if is(
        "envoy.filters.listener.tls_inspector",
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    ) {
        let wire = check::<TlsInspectorWire>(any)?;
        let stats = root.scope("tls_inspector").group();
        Kind::TlsInspector(tls_inspector::Options::new(&wire, stats))
    } else if is(
        "envoy.filters.listener.http_inspector",
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    ) {
        check::<HttpInspector>(any)?;
        Kind::HttpInspector(root.scope("http_inspector").group())
    } else if is(
        "envoy.filters.listener.proxy_protocol",
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
    ) {
        let options = check::<ProxyProtocol>(any)?;
        Kind::ProxyProtocol(proxy_protocol::Options::new(&options, root).at("typed_config")?)
    } else if is(
        "envoy.filters.listener.set_filter_state",
        "envoy.extensions.filters.listener.set_filter_state.v3.Config",
    ) {
        let wire = check::<SetFilterState>(any)?;
        Kind::SetFilterState(Setters::new("on_accept", &wire.on_accept).at("typed_config")?)
    } else {
        return Err(Invalid::new(format!(
            "no listener filter for {name:?} ({message:?})"
        )));
    };
    Ok(kind)
}

fn check<T: prost::Message + prost::Name + Default>(any: &Any) -> Result<T, Invalid> {
    if any.type_url.is_empty() {
        return Ok(T::default());
    }
    proto::any::unpack(any).at("typed_config")
}

/// A parser that has come to an answer keeps to it, whatever else comes: tried with all of an input and with each of its
/// beginnings from `shortest` bytes on (nobody looks before there is something to see).
#[cfg(test)]
fn fuzz_looks<T>(target: &str, shortest: usize, parse: impl Fn(&[u8]) -> Look<T>)
where
    T: std::fmt::Debug + PartialEq,
{
    crate::fuzz::fuzz(target, |bytes| {
        if bytes.len() < shortest {
            return;
        }
        let Look::Done(whole) = parse(bytes) else {
            return;
        };
        for end in shortest..bytes.len() {
            if let Look::Done(early) = parse(&bytes[..end]) {
                assert_eq!(early, whole, "after {end}");
                break;
            }
        }
    });
}
