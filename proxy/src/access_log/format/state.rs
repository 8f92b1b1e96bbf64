//! Filter state: which value, and in which form.

use crate::filter_state::Object;
use crate::invalid::Invalid;
use crate::stream_info::{StreamInfo, UpstreamInfo};

/// A value of the filter state.
#[derive(Debug, Clone)]
pub(super) struct StatePath {
    key: Box<str>,
    form: Form,
}

#[derive(Debug, Clone)]
enum Form {
    Plain,
    Typed,
    Field(Box<str>),
}

impl StatePath {
    /// `KEY`, `KEY:PLAIN`, `KEY:TYPED` or `KEY:FIELD:NAME`.
    pub(super) fn parse(argument: &str) -> Result<Self, Invalid> {
        let mut parts = argument.split(':');
        let key = parts.next().filter(|key| !key.is_empty());
        let key = key.ok_or_else(|| Invalid::new("a key of the filter state is needed"))?;
        let (form, field) = (parts.next().unwrap_or_default(), parts.next());
        let field = field.filter(|field| !field.is_empty());
        let form = match (form, field) {
            ("PLAIN", None) => Form::Plain,
            ("" | "TYPED", None) => Form::Typed,
            ("FIELD", Some(field)) => Form::Field(field.into()),
            ("FIELD" | "" | "PLAIN" | "TYPED", _) => {
                return Err(Invalid::new("FIELD goes with a field's name"));
            }
            _ => {
                return Err(Invalid::new(
                    "of the filter state there are PLAIN, TYPED and FIELD",
                ));
            }
        };
        Ok(Self {
            key: key.into(),
            form,
        })
    }

    /// Whether the value is JSON.
    pub(super) fn is_json(&self) -> bool {
        matches!(self.form, Form::Typed)
    }

    /// The value, if there is one of that form.
    pub(super) fn find(&self, info: &StreamInfo) -> Option<String> {
        self.show(info.object(&self.key)?)
    }

    /// The value that the upstream connection has.
    pub(super) fn find_upstream(&self, upstream: &UpstreamInfo) -> Option<String> {
        self.show(upstream.connection.as_ref()?.filter_state.get(&self.key)?)
    }

    fn show(&self, object: &Object) -> Option<String> {
        match &self.form {
            Form::Plain => Some(object.plain()),
            Form::Typed => object.json(),
            Form::Field(name) => object.field(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter_state::Sharing;
    use crate::stream_info::testing::connection;
    use std::rc::Rc;

    #[test]
    fn forms_are_those_that_envoy_takes() {
        for good in ["k", "k:", "k:PLAIN", "k:TYPED", "k:FIELD:f", "k:FIELD:f:g"] {
            assert!(StatePath::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ":PLAIN", "k:X", "k:FIELD", "k:PLAIN:f", "k:TYPED:f"] {
            assert!(StatePath::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_request_does_not_replace_what_its_connection_has() {
        let mut connection = connection();
        let text = |text: &str| Object::Text(text.into());
        connection
            .filter_state
            .set(&"both".into(), text("connection"), Sharing::Own);
        let mut info = StreamInfo::new(Rc::new(connection), Some(http::Version::HTTP_11));
        (info.filter_state).set(&"both".into(), text("request"), Sharing::Own);
        (info.filter_state).set(&"own".into(), text("request"), Sharing::Own);
        let find = |path: &str| StatePath::parse(path).unwrap().find(&info);
        assert_eq!(find("both:PLAIN").as_deref(), Some("connection"));
        assert_eq!(find("own").as_deref(), Some("\"request\""));
        assert_eq!(find("none"), None);
    }
}
