//! `opa`: lets an Open Policy Agent decide, over its HTTP API.
//!
//! The input document is that of the 1.4 line: `{action: {namespace, service, method, path, properties}, subject: {user,
//! groups: [one], properties}}`. That line ran the policies itself; here they are put onto the server at the start, and the
//! question is a `POST /v1/data/…`. `false` is always a refusal; whatever else goes wrong refuses only with `failClose`.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hyper::Uri;
use parking_lot::Mutex;
use proto_component::task;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use tonic::Code;

use super::http::{self, HttpClient};
use super::stdio::json_of;
use super::{
    Adapter, AdapterConfig, AdapterError, BuildContext, CheckResult, QuotaRequest, QuotaResult,
    Waiting, status,
};
use crate::config::params;
use crate::lang::Val;
use crate::seldom::Seldom;
use crate::template::{Payload, RecordValues, Values};

/// How long a verdict may be used again.
const VALID: Duration = Duration::from_secs(5);
const VALID_USES: i32 = 1_000;
const DEADLINE: Duration = Duration::from_secs(2);
/// How soon a policy that could not be put onto the server is tried again.
const RETRY: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Params {
    /// Rego modules, put onto the server; none: the server has its own.
    policy: Vec<String>,
    #[serde(alias = "check_method")]
    check_method: String,
    #[serde(alias = "fail_close")]
    fail_close: bool,
    /// Where the server is.
    #[serde(alias = "server_url")]
    server_url: String,
    #[serde(deserialize_with = "params::duration")]
    timeout: Duration,
}

#[derive(Debug)]
struct Opa {
    client: HttpClient,
    question: Uri,
    fail_close: bool,
    timeout: Duration,
    silent: Seldom,
    /// What keeps the policies from being on the server.
    problem: Arc<Mutex<Option<String>>>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            policy: Vec::new(),
            check_method: String::new(),
            fail_close: false,
            server_url: "http://localhost:8181".into(),
            timeout: DEADLINE,
        }
    }
}

pub(super) fn configure(json: &Json) -> Result<Box<dyn AdapterConfig>, String> {
    let params: Params = params::read(json)?;
    params.question()?;
    if params.timeout.is_zero() {
        return Err("timeout: must be above 0".into());
    }
    Ok(Box::new(params))
}

impl Params {
    /// `data.mixerauthz.allow` is asked at `/v1/data/mixerauthz/allow`.
    fn question(&self) -> Result<Uri, String> {
        let base = self.base()?;
        let path = self
            .check_method
            .strip_prefix("data.")
            .filter(|path| {
                let is_plain = |part: &str| {
                    !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                };
                path.split('.').all(is_plain)
            })
            .ok_or("checkMethod: a name like data.package.rule is needed")?;
        let url = format!("{base}/v1/data/{}", path.replace('.', "/"));
        http::check_url(&url).map_err(|error| format!("serverUrl: {error}"))
    }

    fn base(&self) -> Result<&str, String> {
        http::check_url(&self.server_url).map_err(|error| format!("serverUrl: {error}"))?;
        Ok(self.server_url.trim_end_matches('/'))
    }
}

impl AdapterConfig for Params {
    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError> {
        let client = http::client();
        let has_policies = !self.policy.is_empty();
        let problem = has_policies.then(|| "the policies are not on the server yet".to_owned());
        let problem = Arc::new(Mutex::new(problem));
        if has_policies {
            let id = format!("mixer/{}", context.handler);
            let uploading = upload(client.clone(), self.clone(), id, Arc::downgrade(&problem));
            task::spawn("opa-policies", uploading);
        }
        Ok(Arc::new(Opa {
            client,
            question: self.question().map_err(AdapterError::new)?,
            fail_close: self.fail_close,
            timeout: self.timeout,
            silent: Seldom::default(),
            problem,
        }))
    }
}

/// Puts the policies onto the server, as often as it takes; ends with the handler.
async fn upload(
    client: HttpClient,
    params: Params,
    id: String,
    problem: std::sync::Weak<Mutex<Option<String>>>,
) {
    let mut position = 0;
    while let Some(policy) = params.policy.get(position) {
        let url = format!(
            "{}/v1/policies/{id}/{position}",
            params.server_url.trim_end_matches('/')
        );
        let put = async {
            let uri = http::check_url(&url)?;
            http::put_text(&client, uri, policy.clone()).await
        };
        let put = tokio::time::timeout(params.timeout, put).await;
        let Some(problem) = problem.upgrade() else {
            return;
        };
        match put.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
            Ok(()) => position += 1,
            Err(error) => {
                tracing::warn!(target: "adapters", error, url, "a policy is not on the server");
                *problem.lock() = Some(error);
                drop(problem);
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    if let Some(problem) = problem.upgrade() {
        *problem.lock() = None;
    }
}

impl Opa {
    async fn ask(&self, input: &Json) -> Result<bool, String> {
        if let Some(problem) = self.problem.lock().clone() {
            return Err(problem);
        }
        let body = json!({"input": input}).to_string().into_bytes();
        let answer = http::post_json(&self.client, self.question.clone(), body);
        let answer = tokio::time::timeout(self.timeout, answer).await;
        let answer = answer.map_err(|_| "no answer in time".to_owned())??;
        let answer: Json = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
        match answer.get("result") {
            Some(Json::Bool(is_allowed)) => Ok(*is_allowed),
            Some(other) => Err(format!("{other} is not true or false")),
            None => Err("there is no result".to_owned()),
        }
    }
}

impl Adapter for Opa {
    fn waiting(&self) -> Option<&dyn Waiting> {
        Some(self)
    }
}

impl Waiting for Opa {
    fn check<'a>(
        &'a self,
        instance: &'a Values<'_>,
    ) -> BoxFuture<'a, Result<CheckResult, AdapterError>> {
        Box::pin(async move {
            let Payload::Record(record) = &instance.payload else {
                return Err(AdapterError::unsupported());
            };
            let refusal = |message: String| CheckResult {
                status: status(Code::PermissionDenied, message),
                valid_duration: VALID,
                valid_use_count: VALID_USES,
                outputs: Vec::new(),
            };
            Ok(match self.ask(&document(record)).await {
                Ok(true) => CheckResult::ok(VALID, VALID_USES),
                Ok(false) => refusal("opa: request was rejected".into()),
                Err(error) => {
                    if let Some(times) = self.silent.times() {
                        tracing::warn!(target: "adapters", error, times, "no verdict from the policy agent");
                    }
                    if self.fail_close {
                        refusal(format!("opa: request was rejected: {error}"))
                    } else {
                        CheckResult::ok(VALID, VALID_USES)
                    }
                }
            })
        })
    }

    fn allocate<'a>(
        &'a self,
        _: &'a Values<'_>,
        _: &'a QuotaRequest<'_>,
    ) -> BoxFuture<'a, Result<QuotaResult, AdapterError>> {
        Box::pin(async { Err(AdapterError::unsupported()) })
    }
}

fn document(record: &RecordValues<'_>) -> Json {
    let properties = |entries: &[(&str, Val<'_>)]| {
        let entries = entries.iter();
        let object: Map<_, _> = entries
            .map(|(name, value)| ((*name).to_owned(), json_of(value)))
            .collect();
        Json::Object(object)
    };
    json!({
        "action": {
            "namespace": record.text("action.namespace"),
            "service": record.text("action.service"),
            "method": record.text("action.method"),
            "path": record.text("action.path"),
            "properties": properties(record.map("action.properties")),
        },
        "subject": {
            "user": record.text("subject.user"),
            "groups": [record.text("subject.groups")],
            "properties": properties(record.map("subject.properties")),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_a_path() {
        let params = Params {
            check_method: "data.mixerauthz.allow".into(),
            ..Params::default()
        };
        assert_eq!(
            params.question().unwrap().path(),
            "/v1/data/mixerauthz/allow"
        );
        for bad in [
            json!({"checkMethod": "allow"}),
            json!({"checkMethod": "data.a/b"}),
            json!({"checkMethod": "data.a", "serverUrl": "nowhere"}),
            json!({"checkMethod": "data.a", "timeout": "0s"}),
            json!({"checkMethod": "data.a", "nonsense": 1}),
        ] {
            assert!(configure(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_document_is_that_of_the_1_4_line() {
        let record = RecordValues::for_test(
            vec![
                ("subject.user", Val::String("me".into())),
                ("subject.groups", Val::String("us".into())),
            ],
            vec![("action.properties", vec![("n", Val::Int64(1))])],
        );
        let document = document(&record);
        assert_eq!(document["subject"]["groups"], json!(["us"]));
        assert_eq!(document["action"]["properties"], json!({"n": 1}));
        assert_eq!(document["action"]["path"], json!(""));
    }
}
