//! Every object against the rules of its kind: the check of `galley validate`, told as analysis tells things.

use super::super::{Code, Context, Level, message::Messages};
use proto_mesh::Topic;

pub(super) fn check(context: &Context, messages: &mut Messages) {
    for object in context.objects() {
        for field in &object.unknown_fields {
            // Galley leaves such an object out, whatever the level of this code usually is.
            messages.add_at(
                Code::SchemaWarning,
                Level::Error,
                object,
                field,
                format!("Unknown field {field}: the object will be refused"),
            );
        }
        for issue in object.errors() {
            let text = match issue.path.as_str() {
                "" => format!("Schema validation error: {}", issue.message),
                path => format!("Schema validation error: {path}: {}", issue.message),
            };
            messages.add(Code::SchemaValidationError, object, &issue.path, text);
        }
        for (topic, code) in [
            (Topic::General, Code::SchemaWarning),
            (Topic::UnreachableRoute, Code::VirtualServiceUnreachableRule),
            (Topic::UnusedMatch, Code::VirtualServiceIneffectiveMatch),
        ] {
            for issue in object.warnings(topic) {
                let text = format!("{}: {}", issue.path, issue.message);
                messages.add(code, object, &issue.path, text);
            }
        }
    }
}
