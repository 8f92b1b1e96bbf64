//! What somebody does not want to hear: `-S CODE=Kind name.namespace` on the command line, or the annotation
//! `galley.istio.io/analyze-suppress: CODE,CODE` (or `*`) of the object itself.

use super::{Context, message::Message, object::Object};

/// The annotation of an object that wants quiet.
pub const ANNOTATION: &str = "galley.istio.io/analyze-suppress";

/// Suppressions of the command line.
#[derive(Clone, Debug, Default)]
pub struct Suppressions(Vec<Suppression>);

#[derive(Clone, Debug)]
struct Suppression {
    code: String,
    /// `Kind name.namespace`, with `*` for any text.
    resource: String,
}

impl Suppressions {
    /// Reads `IST0103=Pod a.default`; in the resource a `*` stands for anything.
    pub fn parse(texts: &[String]) -> Result<Self, String> {
        let parsed = texts.iter().map(|text| {
            let (code, resource) = text.split_once('=').ok_or_else(|| {
                format!("{text}: write CODE=RESOURCE, such as \"IST0103=Pod a.default\"")
            })?;
            Ok(Suppression {
                code: code.trim().to_owned(),
                resource: resource.trim().to_owned(),
            })
        });
        parsed.collect::<Result<_, String>>().map(Self)
    }

    /// Whether the message is suppressed, by the command line or by its object.
    pub fn covers(&self, message: &Message, context: &Context) -> bool {
        let id = message.code.info().id;
        let by_flag = self.0.iter().any(|suppression| {
            (suppression.code == id || suppression.code == "*")
                && matches(&suppression.resource, &message.resource)
        });
        by_flag
            || annotated(context, message).is_some_and(|list| {
                list.split(',')
                    .map(str::trim)
                    .any(|code| code == id || code == "*")
            })
    }
}

/// The annotation of the message's object.
fn annotated<'a>(context: &'a Context, message: &Message) -> Option<&'a String> {
    let is_it = |object: &&Object| {
        object.kind == message.kind
            && object.name == message.name
            && object.namespace == message.namespace
    };
    let object = context.objects().iter().find(is_it)?;
    object.annotations.get(ANNOTATION)
}

/// Whether the text is one of the pattern's, in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text, want) in [
            ("Pod a.b", "Pod a.b", true),
            ("Pod a.b", "Pod a.bc", false),
            ("Pod *", "Pod a.b", true),
            ("*.b", "Pod a.b", true),
            ("Pod *.b", "Pod a.c", false),
            ("*", "", true),
            ("P*a*b", "Pod a.b", true),
        ] {
            assert_eq!(matches(pattern, text), want, "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_no_suppression_is_refused() {
        assert!(Suppressions::parse(&["IST0103".to_owned()]).is_err());
    }
}
