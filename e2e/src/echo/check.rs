//! An external authorizer, over HTTP and over gRPC: whoever says `x-check: allow` may pass, and connections of [`TRUSTED`].

use std::convert::Infallible;

use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Collected, Full};
use hyper::body::{Bytes, Incoming};
use prost::Message as _;
use proto::envoy::config::core::v3::{
    HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction,
};
use proto::envoy::service::auth::v3::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
    check_response::HttpResponse,
};
use proto::envoy::r#type::v3::HttpStatus;

use super::serve::unary;

/// What the caller says.
pub const ASKED: &str = "x-check";
/// What is in the identity of those whose connections may pass.
pub const TRUSTED: &str = "/ns/auto";
/// What the authorizer adds.
pub const CHECKED: &str = "x-checked-by";
/// What it answers whom it does not let pass.
pub const REFUSAL: &str = "checked: no";
const ALLOW: &str = "allow";
/// gRPC's PERMISSION_DENIED.
const PERMISSION_DENIED: i32 = 7;

/// The verdict about a request.
pub(super) async fn answer(request: Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    if kind.is_none_or(|kind| kind != "application/grpc") {
        let asked = request.headers().get(ASKED);
        return over_http(asked.is_some_and(|asked| asked == ALLOW));
    }
    let body = request.into_body().collect().await;
    let message = body.map(Collected::to_bytes).unwrap_or_default();
    // A message begins with a flag and its length.
    let check = CheckRequest::decode(message.get(5..).unwrap_or_default()).unwrap_or_default();
    unary(&over_grpc(may_pass(check.attributes.unwrap_or_default())).encode_to_vec())
}

fn may_pass(attributes: AttributeContext) -> bool {
    match attributes.request.and_then(|request| request.http) {
        Some(http) => http.headers.get(ASKED).is_some_and(|asked| asked == ALLOW),
        // A connection, of which there is no more to be seen than whose it is.
        None => {
            let source = attributes.source.unwrap_or_default();
            source.principal.contains(TRUSTED)
        }
    }
}

fn over_http(is_allowed: bool) -> Response<BoxBody<Bytes, Infallible>> {
    let (status, text) = if is_allowed {
        (StatusCode::OK, "")
    } else {
        (StatusCode::FORBIDDEN, REFUSAL)
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())).boxed());
    *response.status_mut() = status;
    let by = http::HeaderValue::from_static("echo");
    response.headers_mut().insert(CHECKED, by);
    response
}

fn over_grpc(is_allowed: bool) -> CheckResponse {
    let by = HeaderValueOption {
        header: Some(HeaderValue {
            key: CHECKED.to_owned(),
            value: "echo".to_owned(),
            ..HeaderValue::default()
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
        ..HeaderValueOption::default()
    };
    let response = if is_allowed {
        HttpResponse::OkResponse(OkHttpResponse {
            headers: vec![by],
            ..OkHttpResponse::default()
        })
    } else {
        HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(HttpStatus { code: 403 }),
            headers: vec![by],
            body: REFUSAL.to_owned(),
        })
    };
    CheckResponse {
        status: Some(proto::google::rpc::Status {
            code: if is_allowed { 0 } else { PERMISSION_DENIED },
            ..proto::google::rpc::Status::default()
        }),
        http_response: Some(response),
        ..CheckResponse::default()
    }
}
