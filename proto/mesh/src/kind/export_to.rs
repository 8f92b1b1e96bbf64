//! `exportTo`: to whom a resource is visible.

use std::collections::HashSet;

use crate::finding::Report;
use crate::labels::is_dns_label;
use crate::resource::Metadata;

/// Checks `exportTo`. Only a ServiceEntry may be exported to nobody (`~`).
pub(super) fn check(
    export_to: &[String],
    meta: &Metadata,
    nobody_allowed: bool,
    report: &mut Report,
) {
    let mut seen = HashSet::new();
    for (index, entry) in export_to.iter().enumerate() {
        let field = format!("exportTo[{index}]");
        let namespace = if entry == "." {
            meta.namespace.as_str()
        } else {
            entry
        };
        if !seen.insert(namespace) {
            report.error_at(
                &field,
                format!("{entry:?} says again what another entry says"),
            );
            continue;
        }
        match entry.as_str() {
            "." | "*" => {}
            "~" if nobody_allowed => {}
            "~" => report.error_at(&field, "`~` (nobody) is for service entries only"),
            name if is_dns_label(name) => {}
            name => report.error_at(
                &field,
                format!(
                    "{name:?} is neither `.` (this namespace), `*` (all) nor a namespace's name"
                ),
            ),
        }
    }
    for lone in ["*", "~"] {
        if export_to.len() > 1 && seen.contains(lone) {
            report.error_at("exportTo", format!("`{lone}` must be the only entry"));
        }
    }
}
