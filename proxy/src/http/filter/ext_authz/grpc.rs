//! Asking over gRPC: `envoy.service.auth.v3.Authorization/Check`.

use std::rc::Rc;
use std::time::Duration;

use auth::check_response::HttpResponse;
use bytes::Bytes;
use core::header_value_option::HeaderAppendAction;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use proto::envoy::config::core::v3 as core;
use proto::envoy::service::auth::v3 as auth;

use crate::http::client::GrpcService;
use crate::http::local_reply::status_code;
use crate::worker::Worker;

use super::check::Request;
use super::verdict::{Changes, Denied, ResponseChanges, Verdict};

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
/// Envoy's patience.
const TIMEOUT: Duration = Duration::from_millis(200);

pub(super) async fn ask(service: &GrpcService, worker: &Rc<Worker>, request: Request) -> Verdict {
    let timeout = service.timeout.unwrap_or(TIMEOUT);
    let answer = service
        .unary::<_, auth::CheckResponse>(worker, CHECK, &request.message, timeout)
        .await;
    match answer {
        Ok(response) => verdict(response),
        Err(error) => {
            tracing::debug!(target: "ext_authz", %error, cluster = %service.cluster(), "no answer");
            Verdict::Error
        }
    }
}

fn verdict(response: auth::CheckResponse) -> Verdict {
    let is_ok = response
        .status
        .as_ref()
        .is_none_or(|status| status.code == 0);
    #[allow(
        deprecated,
        reason = "older services leave metadata in the OK response"
    )]
    match response.http_response {
        Some(HttpResponse::ErrorResponse(_)) => Verdict::Error,
        Some(HttpResponse::DeniedResponse(denied)) if !is_ok => {
            let status = denied.status.as_ref().map_or(0, |status| status.code);
            Verdict::Denied(Box::new(Denied {
                status: u32::try_from(status)
                    .ok()
                    .and_then(|code| status_code(code).ok())
                    .unwrap_or(StatusCode::FORBIDDEN),
                headers: denied.headers.iter().filter_map(pair).collect(),
                body: Bytes::from(denied.body),
                metadata: response.dynamic_metadata,
            }))
        }
        _ if !is_ok => Verdict::Denied(Box::new(Denied {
            status: StatusCode::FORBIDDEN,
            headers: Vec::new(),
            body: Bytes::new(),
            metadata: response.dynamic_metadata,
        })),
        Some(HttpResponse::OkResponse(ok)) => {
            let mut changes = Changes {
                metadata: response.dynamic_metadata.or(ok.dynamic_metadata),
                remove: removals(&ok.headers_to_remove),
                query_set: ok
                    .query_parameters_to_set
                    .into_iter()
                    .map(|parameter| (parameter.key, parameter.value))
                    .collect(),
                query_remove: ok.query_parameters_to_remove,
                ..Changes::default()
            };
            for option in &ok.headers {
                let Some(pair) = pair(option) else { continue };
                // QUIRK: without `append` a header is replaced, whatever the action says.
                if option.append == Some(true) {
                    changes.append.push(pair);
                } else {
                    changes.set.push(pair);
                }
            }
            changes.response = ResponseChanges(
                ok.response_headers_to_add
                    .iter()
                    .filter_map(|option| {
                        let (name, value) = pair(option)?;
                        let action = match option.append {
                            Some(true) => HeaderAppendAction::AppendIfExistsOrAdd,
                            Some(false) => HeaderAppendAction::OverwriteIfExistsOrAdd,
                            None => option.append_action(),
                        };
                        Some((action, name, value))
                    })
                    .collect(),
            );
            Verdict::Ok(Box::new(changes))
        }
        _ => Verdict::Ok(Box::new(Changes {
            metadata: response.dynamic_metadata,
            ..Changes::default()
        })),
    }
}

fn pair(option: &core::HeaderValueOption) -> Option<(HeaderName, HeaderValue)> {
    let header = option.header.as_ref()?;
    let bytes = if header.raw_value.is_empty() {
        header.value.as_bytes()
    } else {
        &header.raw_value
    };
    Some((
        HeaderName::try_from(&header.key).ok()?,
        HeaderValue::from_bytes(bytes).ok()?,
    ))
}

/// Pseudo headers and `host` stay.
fn removals(names: &[String]) -> Vec<HeaderName> {
    names
        .iter()
        .filter(|name| !name.starts_with(':') && !name.eq_ignore_ascii_case("host"))
        .filter_map(|name| HeaderName::try_from(name).ok())
        .collect()
}
