//! Following a redirect: the request as it goes on, unless the policy or its route forbids it.

use std::rc::Rc;

use http::Method;

use crate::http::body::RequestSource;
use crate::http::headers::Scheme;
use crate::http::stream::StreamCell;
use crate::router::NotFollowed;

use super::attempt::Answer;
use super::plan::Plan;

/// True when the stream's request was changed to follow the redirect: the answer is to be dropped and the filters are to run
/// again.
pub(super) fn follow(
    plan: &Plan,
    cell: &Rc<StreamCell>,
    source: &Rc<RequestSource>,
    answer: &Answer,
) -> bool {
    let status = answer.head.status;
    let Some(policy) = plan
        .action()
        .and_then(|action| action.internal_redirect.as_ref())
        .filter(|policy| policy.follows(status) && !plan.is_upgrade)
    else {
        return false;
    };
    let stats = &plan.cluster.stats;
    let is_followed = source.is_read()
        && source.is_replayable()
        && cell.with(|state| {
            let manager = state.stream.connection.manager.clone();
            let info = &state.stream.info;
            let next = policy.redirected(
                &state.request,
                &answer.head.map,
                status,
                info.connection.tls.is_some(),
                info.internal_redirects,
            );
            let next = match next {
                Ok(next) => next,
                Err(why) => {
                    let counter = match why {
                        NotFollowed::BadLocation => {
                            &manager.stats.passthrough_internal_redirect_bad_location
                        }
                        NotFollowed::UnsafeScheme => {
                            &manager.stats.passthrough_internal_redirect_unsafe_scheme
                        }
                        NotFollowed::TooMany => {
                            &manager
                                .stats
                                .passthrough_internal_redirect_too_many_redirects
                        }
                    };
                    counter.inc();
                    return false;
                }
            };
            let Some(route) = state.stream.look_up(&next) else {
                manager.stats.passthrough_internal_redirect_no_route.inc();
                return false;
            };
            let way = (plan.route.route().name.clone(), route.route().name.clone());
            let scheme = if info.connection.tls.is_some() {
                Scheme::Https
            } else {
                state.request.scheme
            };
            let accepted = policy.accepts(&way, &info.redirects, scheme, next.scheme);
            if !accepted {
                manager.stats.passthrough_internal_redirect_predicate.inc();
                return false;
            }
            if next.method == Method::GET && state.request.method != Method::GET {
                source.forget();
            }
            let mut redirects = info.redirects.clone();
            redirects.push(way);
            state.redirect_to(next, source.show_anew(), status, redirects);
            true
        });
    if is_followed {
        stats.upstream_internal_redirect_succeeded_total.inc();
    } else {
        stats.upstream_internal_redirect_failed_total.inc();
    }
    is_followed
}
