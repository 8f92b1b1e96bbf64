//! The older CSR service (`istio.v1.auth.IstioCAService`), of node agents on virtual machines: the same way to a certificate,
//! other words.

use proto::google::rpc::Status as RpcStatus;
use proto::istio::v1::auth::istio_ca_service_server::IstioCaService;
use proto::istio::v1::auth::{CsrRequest, CsrResponse};
use tonic::{Request, Response, Status};

use super::{Call, CertificateService};
use crate::pki::to_pem;

const SECONDS: i64 = 60;

#[tonic::async_trait]
impl IstioCaService for CertificateService {
    /// `node_agent_credential` is not looked at, as in Istio 1.4: who calls is in the connection and its metadata.
    async fn handle_csr(
        &self,
        request: Request<CsrRequest>,
    ) -> Result<Response<CsrResponse>, Status> {
        let message = request.get_ref();
        let csr = std::str::from_utf8(&message.csr_pem)
            .map_err(|_| Status::invalid_argument("csr_pem is not PEM"))?;
        let seconds = i64::from(message.requested_ttl_minutes) * SECONDS;
        let call = Call::new(&request, csr, seconds);
        let (certificate, bundle) = self.0.issue(&call).await?;
        let intermediates = bundle.intermediates.iter().map(to_pem);
        let chain: String = intermediates.chain([bundle.roots_pem()]).collect();
        Ok(Response::new(CsrResponse {
            is_approved: true,
            status: Some(RpcStatus::default()),
            signed_cert: certificate.pem.into_bytes(),
            cert_chain: chain.into_bytes(),
        }))
    }
}
