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

/// Addresses without what stands before their hosts: a password, or a token in a user's place.
fn without_password(text: &str) -> Option<String> {
    let mut parts = text.split("://");
    let mut blotted = parts.next()?.to_owned();
    let mut found = false;
    for part in parts {
        // A list's next address begins after a comma.
        let end = part.find([',', ' ']).unwrap_or(part.len());
        let (address, rest) = part.split_at(end);
        let host = without_user(address);
        found |= host.is_some();
        blotted = match host {
            Some((user, host)) => format!("{blotted}://{user}{REDACTED}@{host}{rest}"),
            None => format!("{blotted}://{part}"),
        };
    }
    found.then_some(blotted)
}

/// The user with its colon, and the host with what follows, of an address that says more than its host; a password may hold
/// letters that should have been escaped, so the last `@` before a query counts, unless it can only be in the path.
fn without_user(address: &str) -> Option<(String, &str)> {
    let query = address.find(['?', '#']).unwrap_or(address.len());
    let at = address[..query].rfind('@')?;
    let (user_info, host) = (&address[..at], &address[at + 1..]);
    match user_info.split_once(':') {
        Some((user, password)) => {
            // `host:8080/users/@me`: a port, and a path.
            let port = password.split('/').next().unwrap_or_default();
            let is_port =
                password.contains('/') && port.bytes().all(|digit| digit.is_ascii_digit());
            (!user.contains('/') && !is_port).then(|| (format!("{user}:"), host))
        }
        None => (!user_info.contains('/')).then(|| (String::new(), host)),
    }
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

    #[test]
    fn addresses_keep_their_hosts_only() {
        for (text, want) in [
            ("redis://:pa/ss@host:1", "redis://:[redacted]@host:1"),
            (
                "redis://u:p@a,redis://v:q@b/0",
                "redis://u:[redacted]@a,redis://v:[redacted]@b/0",
            ),
            ("https://TOKEN@host/path", "https://[redacted]@host/path"),
            (
                "https://u:p@host/path?to=a@b",
                "https://u:[redacted]@host/path?to=a@b",
            ),
            ("http://host:8080/users/@me", "http://host:8080/users/@me"),
            ("http://host/?mail=a:b@c", "http://host/?mail=a:b@c"),
            (
                "call http://host, or mail a:b@c",
                "call http://host, or mail a:b@c",
            ),
        ] {
            let mut value = json!(text);
            redact(&mut value);
            assert_eq!(value, want);
        }
    }
}
