//! Names of resources, kept once however many proxies have them.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::sent::Pools;

/// The name of a resource.
pub type Name = Arc<str>;

/// Every name in use.
#[derive(Debug, Default)]
pub struct Names {
    known: Mutex<Known>,
    /// What streams have in common.
    pub(super) pools: Pools,
}

#[derive(Debug, Default)]
struct Known {
    names: HashSet<Name>,
    /// When there are more than this, those that nobody has any more are dropped.
    limit: usize,
}

impl Names {
    /// The one copy of `text`.
    pub fn intern(&self, text: &str) -> Name {
        let mut known = self.known.lock();
        if let Some(name) = known.names.get(text) {
            return Arc::clone(name);
        }
        if known.names.len() >= known.limit {
            known.names.retain(|name| Arc::strong_count(name) > 1);
            known.limit = (known.names.len() * 2).max(1024);
        }
        let name: Name = text.into();
        known.names.insert(Arc::clone(&name));
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_one_and_unused_ones_go() {
        let names = Names::default();
        let first = names.intern("a");
        assert!(Arc::ptr_eq(&first, &names.intern("a")));
        for index in 0..5000 {
            drop(names.intern(&index.to_string()));
        }
        assert!(names.known.lock().names.len() <= 2048);
        assert!(Arc::ptr_eq(&first, &names.intern("a")));
    }
}
