//! Reads a key set, at its address or at the one that its issuer's discovery document names.

use std::time::Duration;

use proto_component::fetch::{self, Roots};

use super::KeySource;

/// The authorities that an operator adds.
const EXTRA: &str = "/cacerts/extra.pem";

/// The text of a key set, if it comes in time.
pub(super) async fn fetch(source: &KeySource, patience: Duration) -> Result<String, String> {
    let outcome = async {
        let uri = match source {
            KeySource::Uri(uri) => uri.clone(),
            KeySource::Issuer(issuer) => discover(issuer, patience).await?,
        };
        let text = get(&uri, patience).await?;
        let parsed: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| format!("{uri}: {error}"))?;
        match parsed.get("keys").and_then(serde_json::Value::as_array) {
            Some(_) => Ok(text),
            None => Err(format!("{uri}: not a key set: it has no keys")),
        }
    };
    tokio::time::timeout(patience, outcome)
        .await
        .map_err(|_| format!("no answer within {patience:?}"))?
}

/// The `jwks_uri` of an issuer's discovery document.
async fn discover(issuer: &str, patience: Duration) -> Result<String, String> {
    let uri = format!(
        "{}/.well-known/openid-configuration",
        issuer.trim_end_matches('/')
    );
    let text = get(&uri, patience).await?;
    let document: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| format!("{uri}: {error}"))?;
    document
        .get("jwks_uri")
        .and_then(serde_json::Value::as_str)
        .map(str::to_owned)
        .ok_or_else(|| format!("{uri}: no jwks_uri"))
}

async fn get(text: &str, patience: Duration) -> Result<String, String> {
    let uri: http::Uri = text.parse().map_err(|error| format!("{text}: {error}"))?;
    let bytes = fetch::get(&uri, Roots::SystemAnd(&[EXTRA]), patience).await;
    let bytes = bytes.map_err(|error| format!("{text}: {error}"))?;
    String::from_utf8(bytes).map_err(|error| format!("{text}: {error}"))
}
