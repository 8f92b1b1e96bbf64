//! Reads a key set, at its address or at the one that its issuer's discovery document names.

use std::time::Duration;

use proto_component::fetch::{self, Roots};

use super::KeySource;

const DEADLINE: Duration = Duration::from_secs(5);
/// The authorities that an operator adds.
const EXTRA: &str = "/cacerts/extra.pem";

/// The text of a key set.
pub(super) async fn fetch(source: &KeySource) -> Result<String, String> {
    let outcome = async {
        let uri = match source {
            KeySource::Uri(uri) => uri.clone(),
            KeySource::Issuer(issuer) => discover(issuer).await?,
        };
        let text = get(&uri).await?;
        let parsed: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| format!("{uri}: {error}"))?;
        match parsed.get("keys").and_then(serde_json::Value::as_array) {
            Some(_) => Ok(text),
            None => Err(format!("{uri}: not a key set: it has no keys")),
        }
    };
    tokio::time::timeout(DEADLINE, outcome)
        .await
        .map_err(|_| "no answer in time".to_owned())?
}

/// The `jwks_uri` of an issuer's discovery document.
async fn discover(issuer: &str) -> Result<String, String> {
    let uri = format!(
        "{}/.well-known/openid-configuration",
        issuer.trim_end_matches('/')
    );
    let text = get(&uri).await?;
    let document: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| format!("{uri}: {error}"))?;
    document
        .get("jwks_uri")
        .and_then(serde_json::Value::as_str)
        .map(str::to_owned)
        .ok_or_else(|| format!("{uri}: no jwks_uri"))
}

async fn get(text: &str) -> Result<String, String> {
    let uri: http::Uri = text.parse().map_err(|error| format!("{text}: {error}"))?;
    let bytes = fetch::get(&uri, Roots::SystemAnd(&[EXTRA]), DEADLINE).await;
    let bytes = bytes.map_err(|error| format!("{text}: {error}"))?;
    String::from_utf8(bytes).map_err(|error| format!("{text}: {error}"))
}
