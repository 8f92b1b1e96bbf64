//! The outputs of the `kubernetes` template.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use proto_mesh::attribute::ValueType;

use crate::attributes::Vocabulary;

/// By the names that bindings have for them.
pub(super) static OUTPUTS: LazyLock<Arc<Vocabulary>> = LazyLock::new(|| {
    let mut declared = BTreeMap::new();
    for end in ["source", "destination"] {
        for (name, value_type) in [
            ("pod_ip", ValueType::IpAddress),
            ("pod_name", ValueType::String),
            ("pod_uid", ValueType::String),
            ("labels", ValueType::StringMap),
            ("namespace", ValueType::String),
            ("service_account_name", ValueType::String),
            ("host_ip", ValueType::IpAddress),
            ("workload_uid", ValueType::String),
            ("workload_name", ValueType::String),
            ("workload_namespace", ValueType::String),
            ("owner", ValueType::String),
        ] {
            declared.insert(format!("output.{end}_{name}"), value_type);
        }
    }
    declared.insert(
        "output.destination_container_name".to_owned(),
        ValueType::String,
    );
    Arc::new(Vocabulary::new(&declared))
});
