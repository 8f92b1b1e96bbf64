//! Why a configuration message was refused: where in it, and what is wrong there. It becomes the NACK's detail.

use std::fmt;

/// A refused configuration: the path of the offending field and the problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invalid {
    path: String,
    problem: String,
}

impl Invalid {
    /// A problem of the message at hand.
    pub(crate) fn new(problem: impl Into<String>) -> Self {
        Invalid {
            path: String::new(),
            problem: problem.into(),
        }
    }

    /// A feature that is known and not supported.
    pub(crate) fn unsupported(what: &str) -> Self {
        Invalid::new(format!("{what} is not supported"))
    }

    /// The same problem seen from the message that holds the offending one in `field`.
    #[must_use]
    pub(crate) fn at(mut self, field: impl fmt::Display) -> Self {
        self.path = match self.path.as_str() {
            "" => field.to_string(),
            rest if rest.starts_with('[') => format!("{field}{rest}"),
            rest => format!("{field}.{rest}"),
        };
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.problem)
        } else {
            write!(f, "{}: {}", self.path, self.problem)
        }
    }
}

impl std::error::Error for Invalid {}

impl From<proto::any::UnpackError> for Invalid {
    fn from(error: proto::any::UnpackError) -> Self {
        Invalid::new(error.to_string())
    }
}

/// Adds the place to a refusal.
pub(crate) trait At<T> {
    /// `field` holds what was refused.
    fn at(self, field: impl fmt::Display) -> Result<T, Invalid>;
}

impl<T, E: Into<Invalid>> At<T> for Result<T, E> {
    fn at(self, field: impl fmt::Display) -> Result<T, Invalid> {
        self.map_err(|error| error.into().at(field))
    }
}

/// Turns every item of `wire` into its checked form; the error names the item by its index.
pub(crate) fn try_all<W, T>(
    field: &str,
    wire: impl IntoIterator<Item = W>,
    mut check: impl FnMut(W) -> Result<T, Invalid>,
) -> Result<Vec<T>, Invalid> {
    let wire = wire.into_iter();
    // Room for just so many: what is checked stays, mostly one of it, and a list that grows has room for four.
    let mut checked = Vec::with_capacity(wire.size_hint().0);
    for (index, item) in wire.enumerate() {
        checked.push(check(item).at(format_args!("{field}[{index}]"))?);
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_built_from_the_inside_out() {
        let error = Invalid::new("no")
            .at("[2]")
            .at("routes")
            .at("virtual_hosts[1]");
        assert_eq!(error.to_string(), "virtual_hosts[1].routes[2]: no");
    }
}
