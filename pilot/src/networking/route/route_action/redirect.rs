//! Redirects.

use proto::envoy::config::route::v3::{
    RedirectAction,
    redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
};
use proto::istio::networking::v1alpha3::{
    HttpRedirect,
    http_redirect::{RedirectPort, RedirectPortSelection},
};

/// What `redirect` asks for, of requests that come to `port`.
pub(super) fn build(redirect: &HttpRedirect, port: u32) -> RedirectAction {
    let mut action = RedirectAction {
        host_redirect: redirect.authority.clone(),
        response_code: match redirect.redirect_code {
            302 => RedirectResponseCode::Found,
            303 => RedirectResponseCode::SeeOther,
            307 => RedirectResponseCode::TemporaryRedirect,
            308 => RedirectResponseCode::PermanentRedirect,
            _ => RedirectResponseCode::MovedPermanently,
        } as i32,
        ..RedirectAction::default()
    };
    if !redirect.scheme.is_empty() {
        action.scheme_rewrite_specifier = Some(SchemeRewriteSpecifier::SchemeRedirect(
            redirect.scheme.clone(),
        ));
    }
    let wanted = match redirect.redirect_port {
        Some(RedirectPort::Port(port)) => port,
        Some(RedirectPort::DerivePort(selection))
            if selection == RedirectPortSelection::FromRequestPort as i32 =>
        {
            port
        }
        // The scheme's own is Envoy's default.
        _ => 0,
    };
    // It is not written where it is the scheme's own.
    let own = if redirect.scheme == "https" { 443 } else { 80 };
    if wanted != own {
        action.port_redirect = wanted;
    }
    action.path_rewrite_specifier = if !redirect.prefix_rewrite.is_empty() {
        Some(PathRewriteSpecifier::PrefixRewrite(
            redirect.prefix_rewrite.clone(),
        ))
    } else {
        (!redirect.uri.is_empty()).then(|| PathRewriteSpecifier::PathRedirect(redirect.uri.clone()))
    };
    action
}
