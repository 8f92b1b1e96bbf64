//! An API server for tests: one object in memory, of any kind.

use std::convert::Infallible;

use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

/// What it has.
#[derive(Default)]
struct Record {
    object: Option<Value>,
    version: u64,
    is_away: bool,
}

/// Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct ApiServer(watch::Sender<Record>);

impl ApiServer {
    pub(crate) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.serve(request).await) }
        });
        Client::new(service, "default")
    }

    pub(crate) async fn serve(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let query = parts.uri.query().unwrap_or_default();
        let (status, value) = if query.contains("watch=true") {
            (StatusCode::OK, self.watch(query).await)
        } else {
            self.answer(&parts.method, parts.uri.path(), &body)
        };
        answer(status, &value)
    }

    pub(crate) fn object(&self) -> Option<Value> {
        self.0.borrow().object.clone()
    }

    /// Waits until the object is so.
    pub(crate) async fn until(&self, is_so: impl Fn(&Option<Value>) -> bool) -> Option<Value> {
        let mut record = self.0.subscribe();
        let found = record.wait_for(|record| is_so(&record.object)).await;
        found.unwrap().object.clone()
    }

    /// Whether it answers nobody.
    pub(crate) fn set_away(&self, is_away: bool) {
        self.0.send_modify(|record| record.is_away = is_away);
    }

    pub(crate) fn delete(&self) {
        self.0.send_modify(|record| {
            record.version += 1;
            record.object = None;
        });
    }

    /// Somebody else changes, or makes, the object.
    pub(crate) fn merge(&self, patch: &Value) {
        self.0.send_modify(|record| {
            let mut object = record.object.take().unwrap_or_else(|| json!({}));
            merge(&mut object, patch);
            record.write(object);
        });
    }

    /// The first event after the version that was asked for.
    async fn watch(&self, query: &str) -> Value {
        let mut fields = query.split('&');
        let version = fields.find_map(|field| field.strip_prefix("resourceVersion="));
        let version: u64 = version.unwrap().parse().unwrap();
        let mut record = self.0.subscribe();
        let record = record.wait_for(|record| record.version > version).await;
        let record = record.unwrap();
        match &record.object {
            Some(object) => json!({"type": "MODIFIED", "object": object}),
            None => {
                let metadata = json!({"name": "it", "resourceVersion": record.version.to_string()});
                json!({"type": "DELETED", "object": {"metadata": metadata}})
            }
        }
    }

    fn answer(&self, method: &Method, path: &str, body: &[u8]) -> (StatusCode, Value) {
        let refuse = |status: StatusCode| {
            let (code, name) = (status.as_u16(), status.canonical_reason());
            let reason = name.unwrap_or_default().replace(' ', "");
            let text =
                json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason});
            (status, text)
        };
        let mut answer = refuse(StatusCode::SERVICE_UNAVAILABLE);
        self.0.send_if_modified(|record| {
            if record.is_away {
                return false;
            }
            let sent: Value = serde_json::from_slice(body).unwrap_or_default();
            let is_list = path.ends_with("/configmaps") || path.ends_with("/secrets");
            let version = &sent["metadata"]["resourceVersion"];
            let (object, status) = match (method, record.object.clone()) {
                (&Method::GET, known) if is_list => {
                    let metadata = json!({"resourceVersion": record.version.to_string()});
                    let items: Vec<Value> = known.into_iter().collect();
                    answer = (
                        StatusCode::OK,
                        json!({"metadata": metadata, "items": items}),
                    );
                    return false;
                }
                (&Method::GET, Some(known)) => {
                    answer = (StatusCode::OK, known);
                    return false;
                }
                (&Method::POST, None) => (sent, StatusCode::CREATED),
                // Applied, as its content says, which a mere patch does not.
                (&Method::PATCH, None) if sent["kind"].is_string() => (sent, StatusCode::CREATED),
                (_, None) => {
                    answer = refuse(StatusCode::NOT_FOUND);
                    return false;
                }
                (&Method::PUT, Some(known)) if *version == known["metadata"]["resourceVersion"] => {
                    (sent, StatusCode::OK)
                }
                (&Method::PATCH, Some(mut known))
                    if version.is_null() || *version == known["metadata"]["resourceVersion"] =>
                {
                    merge(&mut known, &sent);
                    (known, StatusCode::OK)
                }
                _ => {
                    answer = refuse(StatusCode::CONFLICT);
                    return false;
                }
            };
            record.write(object);
            answer = (status, record.object.clone().unwrap_or_default());
            true
        });
        answer
    }
}

impl Record {
    fn write(&mut self, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.object = Some(object);
    }
}

/// An answer with this text.
pub(crate) fn answer(status: StatusCode, value: &Value) -> Response<Body> {
    let text = value.to_string() + "\n";
    let response = Response::builder().status(status);
    response.body(Body::from(text.into_bytes())).unwrap()
}

/// A JSON merge patch.
fn merge(object: &mut Value, patch: &Value) {
    let (Value::Object(object), Value::Object(patch)) = (&mut *object, patch) else {
        patch.clone_into(object);
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            object.remove(name);
        } else {
            merge(object.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}
