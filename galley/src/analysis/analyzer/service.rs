//! Services: do their ports tell the protocol; and objects whose status tells of trouble.

use super::super::{
    Code, Context,
    context::{is_control_plane, is_system_namespace},
    message::Messages,
    object::{AUTHORIZATION_POLICY, SERVICE, SERVICE_ENTRY, items, text},
};
use proto_mesh::protocol::Protocol;

pub(super) fn check_port_names(context: &Context, messages: &mut Messages) {
    for service in context.of(SERVICE) {
        if is_system_namespace(&service.namespace) || is_control_plane(service) {
            continue;
        }
        let is_external = service.spec()["type"] == "ExternalName";
        for (index, port) in items(&service.spec()["ports"]).enumerate() {
            let (name, number) = (
                text(&port["name"]),
                port["port"].as_u64().unwrap_or_default(),
            );
            let protocol = Protocol::of_service_port(
                u32::try_from(number).unwrap_or_default(),
                name,
                port["appProtocol"].as_str(),
                text(&port["protocol"]),
            );
            let is_untold = protocol.is_unsupported() || (is_external && name == "tcp");
            if !is_untold {
                continue;
            }
            let path = format!("spec.ports[{index}]");
            let (code, text) = if is_external {
                (
                    Code::ExternalNameServiceTypeInvalidPortName,
                    format!(
                        "Port {number} of an ExternalName service has no protocol of its own: name it, for example http-{name}"
                    ),
                )
            } else {
                (
                    Code::PortNameIsNotUnderNamingConvention,
                    format!(
                        "Port {number} is named {name:?}, which begins with no protocol: name it, for example http-{name}"
                    ),
                )
            };
            messages.add(code, service, &path, text);
        }
    }
}

pub(super) fn check_conditions(context: &Context, messages: &mut Messages) {
    for kind in [SERVICE, SERVICE_ENTRY, AUTHORIZATION_POLICY] {
        for object in context.of(kind) {
            for condition in items(&object.value["status"]["conditions"]) {
                if condition["status"] == "False" {
                    let text = format!(
                        "Condition {} is false: {} ({})",
                        text(&condition["type"]),
                        text(&condition["message"]),
                        text(&condition["reason"])
                    );
                    messages.add(Code::NegativeConditionStatus, object, "status", text);
                }
            }
        }
    }
}
