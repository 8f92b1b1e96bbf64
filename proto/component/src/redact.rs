//! Secrets in JSON that people see: what is blotted out of a dump or a debug page before it is shown.
//!
//! Configuration is full of places for a secret, so three things are looked for: fields whose name says so, strings that are
//! private keys whoever holds them, and the secret parts of addresses (`user:password@`) and of JSON Web Keys.

use serde_json::Value;

/// What stands in a secret's place.
pub const REDACTED: &str = "[redacted]";

/// Fields below which inline data is secret, at whatever depth; without `_` and in small letters.
const HOLDERS: &[&str] = &[
    "privatekey",
    "password",
    "pkcs12",
    "sessionticketkeys",
    "genericsecret",
    "tokensecret",
    "hmacsecret",
];
/// Fields of data sources that hold the data itself.
const INLINE: &[&str] = &["inlinestring", "inlinebytes"];
/// Fields whose text is a secret itself.
const TEXTS: &[&str] = &["password", "accesstoken", "clientsecret", "apikey"];
/// Parts of a JSON Web Key that are not public.
const JWK_SECRETS: &[&str] = &["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
const PRIVATE_KEY: &str = "PRIVATE KEY-----";

/// Blots out secrets, wherever they are.
pub fn redact(value: &mut Value) {
    blot(value, false);
}

fn blot(value: &mut Value, is_secret: bool) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                let name = plain(name);
                let is_inline = is_secret && INLINE.contains(&name.as_str());
                if value.is_string() && (is_inline || TEXTS.contains(&name.as_str())) {
                    *value = REDACTED.into();
                } else {
                    blot(value, is_secret || HOLDERS.contains(&name.as_str()));
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| blot(item, is_secret)),
        Value::String(text) => {
            if let Some(blotted) = without_secrets(text) {
                *text = blotted;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A field's name as it would be in any of JSON's spellings.
fn plain(name: &str) -> String {
    name.chars()
        .filter(|letter| *letter != '_')
        .map(|letter| letter.to_ascii_lowercase())
        .collect()
}

/// A text without what is secret in it, if there is something.
fn without_secrets(text: &str) -> Option<String> {
    if text.contains(PRIVATE_KEY) {
        return Some(REDACTED.to_owned());
    }
    without_key_material(text).or_else(|| without_password(text))
}

/// JSON Web Keys without their secret parts.
fn without_key_material(text: &str) -> Option<String> {
    let mut keys: Value = text
        .contains("\"kty\"")
        .then(|| serde_json::from_str(text).ok())??;
    let is_secret = blot_keys(&mut keys);
    is_secret.then(|| keys.to_string())
}

fn blot_keys(value: &mut Value) -> bool {
    match value {
        Value::Object(fields) => {
            let is_key = fields.contains_key("kty");
            let mut found = false;
            for (name, value) in fields.iter_mut() {
                if is_key && JWK_SECRETS.contains(&name.as_str()) {
                    *value = REDACTED.into();
                    found = true;
                } else {
                    found |= blot_keys(value);
                }
            }
            found
        }
        Value::Array(items) => items
            .iter_mut()
            .fold(false, |found, item| blot_keys(item) | found),
        _ => false,
    }
}

/// An address without the password in it.
fn without_password(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (user_info, host) = authority.rsplit_once('@')?;
    let (user, _) = user_info.split_once(':')?;
    Some(format!("{scheme}://{user}:{REDACTED}@{host}{path}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_blotted_out_and_nothing_else() {
        let pem = "-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----\n";
        let jwks = json!({"keys": [{"kty": "oct", "kid": "a", "k": "c2VjcmV0"}]}).to_string();
        let public = json!({"keys": [{"kty": "EC", "x": "x", "y": "y"}]}).to_string();
        let mut value = json!({
            "tls_certificate": {"private_key": {"inline_bytes": "a2V5"}, "certificate_chain": {"inline_string": "chain"}},
            "tlsCertificate": {"privateKey": {"inlineString": "key"}, "other": {"privateKey": "/etc/certs/key.pem"}},
            "generic_secret": {"secrets": {"a": {"inline_string": "b"}}},
            "files": {"private_key": {"filename": "/key.pem"}},
            "lightstep": {"accessToken": "abc", "address": "host:1"},
            "params": {"redisServerUrl": "redis://user:pass@redis:6379/0", "list": ["http://host/@x:y", pem]},
            "jwks": jwks, "public": public,
            "session": {"sessionTicketKeys": {"keys": [{"inlineBytes": "AAAA"}]}},
        });
        redact(&mut value);
        let blotted = json!({"keys": [{"kty": "oct", "kid": "a", "k": REDACTED}]}).to_string();
        let want = json!({
            "tls_certificate": {"private_key": {"inline_bytes": REDACTED}, "certificate_chain": {"inline_string": "chain"}},
            "tlsCertificate": {"privateKey": {"inlineString": REDACTED}, "other": {"privateKey": "/etc/certs/key.pem"}},
            "generic_secret": {"secrets": {"a": {"inline_string": REDACTED}}},
            "files": {"private_key": {"filename": "/key.pem"}},
            "lightstep": {"accessToken": REDACTED, "address": "host:1"},
            "params": {"redisServerUrl": "redis://user:[redacted]@redis:6379/0", "list": ["http://host/@x:y", REDACTED]},
            "jwks": blotted, "public": public,
            "session": {"sessionTicketKeys": {"keys": [{"inlineBytes": REDACTED}]}},
        });
        assert_eq!(value, want);
    }
}
