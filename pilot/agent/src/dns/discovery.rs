//! The name table, pushed by Pilot (NDS). While Pilot is away the last table stays.

use std::sync::Arc;
use std::time::Duration;

use proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use proto::istio::networking::nds::v1::NameTable;
use proto_component::backoff::Backoff;
use proto_component::drain::Drain;
use tonic::Code;

use super::Names;
use super::table::Table;
use crate::discovery::{Pilot, StreamError};

const FIRST_RETRY: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(10);

/// Where names come from, and for whom.
pub struct NameSource {
    /// Who sends them.
    pub pilot: Pilot,
    /// The pod's namespace.
    pub namespace: String,
    /// The domain of its short names.
    pub domain: String,
}

impl NameSource {
    /// Keeps `names` as Pilot says until the drain's end; `search` is the domain that the pod looks for short names in first.
    pub(super) async fn follow(self, names: &Names, search: &str, drain: &Drain) {
        let mut backoff = Backoff::new(FIRST_RETRY, RETRY_CAP);
        loop {
            let outcome = tokio::select! {
                outcome = self.listen(names, search, &mut backoff) => outcome,
                () = drain.expired() => return,
            };
            if let Err(error) = outcome {
                tracing::debug!(target: "dns", %error, "the stream of names has ended");
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = drain.expired() => return,
            }
        }
    }

    /// One stream, to its end.
    async fn listen(
        &self,
        names: &Names,
        search: &str,
        backoff: &mut Backoff,
    ) -> Result<(), StreamError> {
        let mut request = DiscoveryRequest {
            type_url: proto::type_url::NAME_TABLE.to_owned(),
            ..DiscoveryRequest::default()
        };
        let mut stream = self.pilot.open(request.clone()).await?;
        while let Some(answer) = stream.answers.message().await? {
            request.response_nonce.clone_from(&answer.nonce);
            request.error_detail = None;
            match read(&answer) {
                Ok(table) => {
                    backoff.reset();
                    request.version_info.clone_from(&answer.version_info);
                    let table = Table::new(table, &self.namespace, &self.domain, search);
                    tracing::debug!(target: "dns", names = table.len(), "names have come");
                    names.store(Some(Arc::new(table)));
                }
                Err(message) => {
                    tracing::warn!(target: "dns", message, "names stay as they were");
                    request.error_detail = Some(proto::google::rpc::Status {
                        code: Code::InvalidArgument as i32,
                        message,
                        ..proto::google::rpc::Status::default()
                    });
                }
            }
            if stream.requests.send(request.clone()).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

fn read(answer: &DiscoveryResponse) -> Result<NameTable, String> {
    match answer.resources.as_slice() {
        [] => Ok(NameTable::default()),
        [resource] => {
            proto::any::unpack(resource).map_err(|error| format!("no name table: {error}"))
        }
        _ => Err("there is more than one name table".to_owned()),
    }
}
