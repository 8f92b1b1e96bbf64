//! What of a connection manager's configuration is not supported.

use proto::envoy::extensions::filters::network::http_connection_manager::v3 as wire;
use wire::http_connection_manager as hcm;

use crate::invalid::Invalid;

/// Refuses what is not supported.
pub(super) fn check(config: &wire::HttpConnectionManager) -> Result<(), Invalid> {
    let refuse = |is_set: bool, field: &str| {
        if is_set {
            Err(Invalid::unsupported(field))
        } else {
            Ok(())
        }
    };
    refuse(
        config.codec_type() == hcm::CodecType::Http3,
        "codec_type HTTP3",
    )?;
    refuse(
        !config.original_ip_detection_extensions.is_empty(),
        "original_ip_detection_extensions",
    )?;
    refuse(
        !config.early_header_mutation_extensions.is_empty(),
        "early_header_mutation_extensions",
    )?;
    refuse(
        config.typed_header_validation_config.is_some(),
        "typed_header_validation_config",
    )?;
    refuse(
        config.forward_client_cert_matcher.is_some(),
        "forward_client_cert_matcher",
    )?;
    refuse(
        config
            .upgrade_configs
            .iter()
            .any(|upgrade| !upgrade.filters.is_empty()),
        "upgrade_configs.filters",
    )
}
