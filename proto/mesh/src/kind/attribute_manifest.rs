//! Rules of attributemanifest: Mixer's vocabulary.

use proto::istio::policy::v1beta1::{AttributeManifest, ValueType};

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(spec: &AttributeManifest, _meta: &Metadata, report: &mut Report) {
    report.entries("attributes", &spec.attributes, |report, name, attribute| {
        if name.is_empty() {
            report.error("the attribute has no name");
        }
        if attribute.value_type() == ValueType::Unspecified {
            report.warning_at(
                "valueType",
                "the attribute has no type: expressions cannot use it",
            );
        }
    });
}
