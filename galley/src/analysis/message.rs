//! What analysis says: a code of Istio's with its level, the object, the line, and what is wrong.

use super::object::Object;
use serde::Serialize;
use std::{fmt, str::FromStr};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Level {
    /// Worth knowing.
    Info,
    /// Probably not what was meant.
    Warning,
    /// Broken.
    Error,
}

/// One row of the table of codes.
#[derive(Debug)]
pub struct CodeInfo {
    /// `IST0101`.
    pub id: &'static str,
    /// `ReferencedResourceNotFound`.
    pub name: &'static str,
    /// The level of its messages, if they do not say otherwise.
    pub level: Level,
    /// What it means, and what to do.
    pub about: &'static str,
}

macro_rules! codes {
    ($($name:ident $id:literal $level:ident, $about:literal;)*) => {
        /// Every code that an analyzer here may give.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs, reason = "each is described in the table")]
        pub enum Code { $($name),* }

        /// The table of codes, by number.
        pub static CODES: &[CodeInfo] = &[$(CodeInfo {
            id: $id, name: stringify!($name), level: Level::$level, about: $about,
        }),*];
    };
}

codes! {
    Deprecated "IST0002" Warning, "The object uses something that is deprecated; use what the message names instead.";
    ReferencedResourceNotFound "IST0101" Error, "The object refers to something that does not exist; correct the name, or create it.";
    NamespaceNotInjected "IST0102" Info, "The namespace does not say whether its pods get a sidecar; label it istio-injection=enabled, or =disabled.";
    PodMissingProxy "IST0103" Warning, "The pod's namespace is injected, but the pod has no proxy; restart it.";
    SchemaValidationError "IST0106" Error, "The object does not obey the rules of its kind and is not served.";
    MisplacedAnnotation "IST0107" Warning, "The annotation has no effect on an object of this kind.";
    UnknownAnnotation "IST0108" Warning, "The annotation is in a domain of the mesh's, but nobody knows it; it may be misspelt.";
    ConflictingMeshGatewayVirtualServiceHosts "IST0109" Error, "Several virtual services for the mesh's sidecars name the same host; merge them, or restrict their exportTo.";
    ConflictingSidecarWorkloadSelectors "IST0110" Error, "Several Sidecars select the same pod; which one applies is undefined.";
    MultipleSidecarsWithoutWorkloadSelectors "IST0111" Error, "A namespace has several Sidecars without workloadSelector; which one applies is undefined.";
    VirtualServiceDestinationPortSelectorRequired "IST0112" Error, "The destination's service has several ports; name one.";
    DeploymentAssociatedToMultipleServices "IST0116" Warning, "Services of different protocols share a port of the same pods.";
    PortNameIsNotUnderNamingConvention "IST0118" Info, "The port's name does not begin with a protocol; the proxy will have to detect it.";
    JwtFailureDueToInvalidServicePortPrefix "IST0119" Warning, "The policy asks for a token on a port that does not speak HTTP.";
    PolicyResourceIsDeprecated "IST0120" Info, "Policy is the 1.4 line's; use PeerAuthentication and RequestAuthentication instead.";
    MeshPolicyResourceIsDeprecated "IST0121" Info, "MeshPolicy is the 1.4 line's; use PeerAuthentication in the root namespace instead.";
    NamespaceMultipleInjectionLabels "IST0123" Warning, "The namespace has labels that contradict each other about injection; remove all but one.";
    InvalidAnnotation "IST0125" Warning, "The annotation's value cannot be read.";
    UnknownMeshNetworksServiceRegistry "IST0126" Error, "meshNetworks refers to a cluster that the mesh does not know.";
    NoMatchingWorkloadsFound "IST0127" Warning, "The policy applies to no pod of the mesh.";
    NoServerCertificateVerificationDestinationLevel "IST0128" Warning, "TLS is asked for, but without caCertificates the server's certificate is not verified.";
    NoServerCertificateVerificationPortLevel "IST0129" Warning, "TLS is asked for on a port, but without caCertificates the server's certificate is not verified.";
    VirtualServiceUnreachableRule "IST0130" Warning, "An earlier route takes all the traffic of this one.";
    VirtualServiceIneffectiveMatch "IST0131" Info, "An earlier match takes all the traffic of this one.";
    VirtualServiceHostNotFoundInGateway "IST0132" Warning, "No server of the gateway has any of the virtual service's hosts.";
    SchemaWarning "IST0133" Warning, "The object is accepted but does not do what it seems to.";
    ServiceEntryAddressesRequired "IST0134" Warning, "A TCP port of a service entry without addresses takes the traffic of every host on that port.";
    DeprecatedAnnotation "IST0135" Info, "The annotation is deprecated.";
    DeploymentConflictingPorts "IST0137" Warning, "Services give the same port of the pods different numbers.";
    GatewayDuplicateCertificate "IST0138" Warning, "Gateways of the same workload share a certificate; browsers that reuse connections get 404.";
    InvalidWebhook "IST0139" Error, "The webhooks overlap, or one leads nowhere.";
    IngressRouteRulesNotAffected "IST0140" Warning, "The routes of a gateway do not use the subsets of another virtual service for the same host.";
    InsufficientPermissions "IST0141" Error, "The user may not read what is needed.";
    UnsupportedKubernetesVersion "IST0142" Error, "The cluster's Kubernetes is too old.";
    InvalidApplicationUid "IST0144" Warning, "The application runs as user 1337, whose traffic is not intercepted.";
    ConflictingGateways "IST0145" Error, "Gateways of the same workload have the same port and host.";
    ImageAutoWithoutInjectionWarning "IST0146" Warning, "The image `auto` is filled in by injection, which does not reach these pods.";
    ImageAutoWithoutInjectionError "IST0147" Error, "The image `auto` is filled in by injection, which this pod did not go through.";
    NamespaceInjectionEnabledByDefault "IST0148" Info, "The namespace says nothing, and injection is on by default.";
    JwtClaimBasedRoutingWithoutRequestAuthN "IST0149" Error, "Routes match claims of a token that nobody verifies at this gateway.";
    ExternalNameServiceTypeInvalidPortName "IST0150" Warning, "A port of an ExternalName service has no protocol of its own; its traffic may be misrouted.";
    EnvoyFilterUsesRelativeOperation "IST0151" Warning, "A patch relative to others has no priority; whether its anchor is there is undefined.";
    EnvoyFilterUsesReplaceOperationIncorrectly "IST0152" Error, "REPLACE works on HTTP_FILTER, NETWORK_FILTER and VIRTUAL_HOST only.";
    EnvoyFilterUsesAddOperationIncorrectly "IST0153" Error, "ADD is ignored for ROUTE_CONFIGURATION and HTTP_ROUTE.";
    EnvoyFilterUsesRemoveOperationIncorrectly "IST0154" Error, "REMOVE is ignored for ROUTE_CONFIGURATION and HTTP_ROUTE.";
    EnvoyFilterUsesRelativeOperationWithProxyVersion "IST0155" Warning, "A patch relative to one that is for some proxy versions only has no priority.";
    InvalidTelemetryProvider "IST0157" Warning, "Access logging names no provider, and the mesh has no default one.";
    PodsIstioProxyImageMismatchInNamespace "IST0158" Warning, "Pods run another proxy image than injection would give them now; restart them.";
    ConflictingTelemetryWorkloadSelectors "IST0159" Error, "Several Telemetry objects select the same pod.";
    MultipleTelemetriesWithoutWorkloadSelectors "IST0160" Error, "A namespace has several Telemetry objects without selector.";
    InvalidGatewayCredential "IST0161" Error, "The secret of a gateway holds no certificate that can be used.";
    GatewayPortNotDefinedOnService "IST0162" Warning, "No service of the gateway's workload leads to this port.";
    InvalidExternalControlPlaneConfig "IST0163" Warning, "The webhook's address cannot be used.";
    ExternalControlPlaneAddressIsNotAHostname "IST0164" Info, "The webhook's address is an IP address; a name survives a move.";
    ReferencedInternalGateway "IST0165" Warning, "The virtual service names a gateway that is generated; it may change at any time.";
    IneffectiveSelector "IST0166" Warning, "A policy for a Kubernetes Gateway needs targetRefs; its selector has no effect.";
    IneffectivePolicy "IST0167" Warning, "The object has no effect where it is.";
    NegativeConditionStatus "IST0171" Warning, "The object's status says that something is not as it should be.";
    DestinationRuleSubsetNotSelectPods "IST0173" Error, "The subset's labels select no pod.";
    UnknownDestinationRuleHost "IST0174" Warning, "Nobody serves the destination rule's host.";
    JwksUriFetchUnrestricted "IST0175" Warning, "Whoever writes a RequestAuthentication can make the control plane fetch any address; restrict it.";
    GatewayApiCrdVersionBelowMinimum "IST0176" Warning, "The Gateway API's definitions are too old, and their objects are not looked at.";
    ConflictingServiceEntryProtocol "IST0177" Warning, "Service entries give the same host and port different protocols.";
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub code: Code,
    /// How bad.
    pub level: Level,
    /// `Kind name.namespace`.
    pub resource: String,
    /// Kind of the object.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub text: String,
    /// The file; empty for an object of a cluster.
    pub file: String,
    /// The line, 0 where there is no file.
    pub line: usize,
}

/// The messages of a run.
#[derive(Debug, Default)]
pub struct Messages(Vec<Message>);

impl Messages {
    /// Reports something about the field at `path` of an object (`spec.hosts[0]`, or empty).
    pub fn add(&mut self, code: Code, object: &Object, path: &str, text: impl Into<String>) {
        self.add_at(code, code.info().level, object, path, text);
    }

    /// The same, at a level of its own.
    pub fn add_at(
        &mut self,
        code: Code,
        level: Level,
        object: &Object,
        path: &str,
        text: impl Into<String>,
    ) {
        let (file, line) = object.place(path);
        self.0.push(Message {
            code,
            level,
            resource: object.title(),
            kind: object.kind.clone(),
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            text: text.into(),
            file,
            line,
        });
    }

    /// All of them, by file, line, object and code; what was said twice is there once.
    pub fn into_sorted(self) -> Vec<Message> {
        let mut all = self.0;
        all.sort_by(|a, b| a.key().cmp(&b.key()));
        all.dedup();
        all
    }
}

impl Message {
    fn key(&self) -> (&str, usize, &str, Code, &str) {
        (&self.file, self.line, &self.resource, self.code, &self.text)
    }
}

impl Code {
    /// Its row in the table.
    pub fn info(self) -> &'static CodeInfo {
        &CODES[self as usize]
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info().id)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "Info",
            Self::Warning => "Warning",
            Self::Error => "Error",
        })
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "info" => Ok(Self::Info),
            "warning" | "warn" => Ok(Self::Warning),
            "error" => Ok(Self::Error),
            _ => Err("use Info, Warning or Error".to_owned()),
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}] ({}", self.level, self.code, self.resource)?;
        if !self.file.is_empty() {
            write!(f, " {}:{}", self.file, self.line)?;
        }
        write!(f, ") {}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_named_once() {
        let ids: Vec<&str> = CODES.iter().map(|code| code.id).collect();
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(ids, sorted);
        assert_eq!(Code::ConflictingServiceEntryProtocol.to_string(), "IST0177");
    }
}
