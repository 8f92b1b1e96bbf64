//! Rules of instance: values for a template. Whether the expressions suit the template, Mixer says.

use proto::istio::policy::v1beta1::Instance;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(spec: &Instance, _meta: &Metadata, report: &mut Report) {
    match (spec.compiled_template.is_empty(), spec.template.is_empty()) {
        (true, true) => {
            report.warning("the instance is never made: give compiledTemplate or template");
        }
        (false, false) => report.warning_at(
            "template",
            "compiledTemplate is given too: template is ignored",
        ),
        _ => {}
    }
}
