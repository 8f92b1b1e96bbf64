//! The header-mutation filter: changes headers of requests and responses anywhere in the chain, by its own configuration and
//! by those of the route's levels.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use prost_types::Any;
use proto::envoy::config::common::mutation_rules::v3 as rules;
use proto::envoy::extensions::filters::http::header_mutation::v3 as wire;
use rules::header_mutation::Action;

use crate::http::headers::{RequestHeaders, ResponseHeaders};
use crate::http::stream::Stream;
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::StringMatcher;
use crate::router::{HeaderMutations, header_name};
use crate::stream_info::StreamInfo;

use super::{
    FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, RouteConfig, RouteValue,
};

const NAME: &str = "envoy.filters.http.header_mutation";

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
    name: NAME,
    build,
    routes: &[(
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
        route,
    )],
};

#[derive(Default)]
struct Mutations {
    request: Vec<Step>,
    response: Vec<Step>,
}

enum Step {
    Remove(HeaderName),
    RemoveMatching(StringMatcher),
    Add(HeaderMutations),
}

struct Config {
    name: Box<str>,
    own: Mutations,
    most_specific_wins: bool,
}

#[derive(Clone)]
struct Filter(Arc<Config>);

fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config: wire::HeaderMutation = super::unpack(any)?;
    Ok(Arc::new(Filter(Arc::new(Config {
        name: context.name.into(),
        own: Mutations::try_new(config.mutations.as_ref()).at("mutations")?,
        most_specific_wins: config.most_specific_header_mutations_wins,
    }))))
}

fn route(any: &Any) -> Result<RouteValue, Invalid> {
    let config: wire::HeaderMutationPerRoute = super::unpack(any)?;
    Ok(Arc::new(
        Mutations::try_new(config.mutations.as_ref()).at("mutations")?,
    ))
}

impl Mutations {
    fn try_new(wire: Option<&wire::Mutations>) -> Result<Self, Invalid> {
        let Some(wire) = wire else {
            return Ok(Mutations::default());
        };
        let refuse = |is_set: bool, field: &str| {
            if is_set {
                return Err(Invalid::unsupported(field));
            }
            Ok(())
        };
        refuse(
            !wire.query_parameter_mutations.is_empty(),
            "query_parameter_mutations",
        )?;
        refuse(
            !wire.response_trailers_mutations.is_empty(),
            "response_trailers_mutations",
        )?;
        refuse(
            !wire.request_trailers_mutations.is_empty(),
            "request_trailers_mutations",
        )?;
        Ok(Mutations {
            request: try_all("request_mutations", &wire.request_mutations, Step::try_from)?,
            response: try_all(
                "response_mutations",
                &wire.response_mutations,
                Step::try_from,
            )?,
        })
    }
}

impl TryFrom<&rules::HeaderMutation> for Step {
    type Error = Invalid;

    fn try_from(mutation: &rules::HeaderMutation) -> Result<Self, Invalid> {
        Ok(match &mutation.action {
            Some(Action::Remove(name)) => Step::Remove(header_name(name).at("remove")?),
            Some(Action::Append(append)) => {
                Step::Add(HeaderMutations::try_new(std::slice::from_ref(append), &[])?)
            }
            Some(Action::RemoveOnMatch(remove)) => {
                let matcher = remove.key_matcher.as_ref();
                let matcher = matcher.ok_or_else(|| Invalid::new("a key_matcher is needed"))?;
                Step::RemoveMatching(StringMatcher::try_from(matcher).at("remove_on_match")?)
            }
            None => return Err(Invalid::new("an action is needed")),
        })
    }
}

impl Step {
    fn remove(&self, map: &mut HeaderMap) {
        match self {
            Step::Remove(name) => {
                map.remove(name);
            }
            Step::RemoveMatching(matcher) => {
                let names: Vec<HeaderName> = map
                    .keys()
                    .filter(|name| matcher.matches(name.as_str()))
                    .cloned()
                    .collect();
                for name in names {
                    map.remove(name);
                }
            }
            Step::Add(_) => {}
        }
    }

    fn change_request(&self, headers: &mut RequestHeaders, info: &StreamInfo) {
        match self {
            Step::Add(add) => add.apply_to_request(headers, info),
            step => step.remove(&mut headers.map),
        }
    }

    fn change_response(&self, headers: &mut ResponseHeaders, info: &StreamInfo) {
        match self {
            Step::Add(add) => add.apply_to_response(headers, None, info),
            step => step.remove(&mut headers.map),
        }
    }
}

impl FilterFactory for Filter {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(self.clone()))
    }
}

impl Config {
    /// The filter's own changes, then those of the route's levels in the configured order.
    fn each(&self, stream: &Stream, mut apply: impl FnMut(&Mutations)) {
        apply(&self.own);
        let Some(route) = stream.route() else {
            return;
        };
        let mut levels: Vec<&Mutations> = route
            .filter_configs(&self.name)
            .filter_map(|config| match config {
                RouteConfig::Value(value) => value.downcast_ref(),
                RouteConfig::Disabled | RouteConfig::Enabled => None,
            })
            .collect();
        // They come with the most specific first.
        if self.most_specific_wins {
            levels.reverse();
        }
        levels.into_iter().for_each(apply);
    }
}

impl HttpFilter for Filter {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        self.0.each(stream, |mutations| {
            for step in &mutations.request {
                step.change_request(headers, &stream.info);
            }
        });
        FilterStatus::Continue
    }

    fn encode_headers(&mut self, headers: &mut ResponseHeaders, stream: &mut Stream) {
        self.0.each(stream, |mutations| {
            for step in &mutations.response {
                step.change_response(headers, &stream.info);
            }
        });
    }
}
