//! Things by the hosts that they are for: names at once, wildcards one by one.

use std::collections::HashMap;

use proto_mesh::host;

/// Positions in a list, by host.
#[derive(Clone, Debug, Default)]
pub struct HostIndex {
    names: HashMap<String, Vec<usize>>,
    wildcards: Vec<(String, usize)>,
}

impl HostIndex {
    /// Adds `position`, which is for `host`. Positions are added in rising order.
    pub fn add(&mut self, host: &str, position: usize) {
        if host::is_wildcard(host) {
            self.wildcards.push((host.to_owned(), position));
        } else {
            self.names
                .entry(host.to_owned())
                .or_default()
                .push(position);
        }
    }

    /// What is for exactly the name `host`.
    #[must_use]
    pub fn named(&self, host: &str) -> &[usize] {
        self.names.get(host).map_or(&[], Vec::as_slice)
    }

    /// What is for a wildcard that covers `host`.
    pub fn covering(&self, host: &str) -> impl Iterator<Item = usize> {
        self.wildcards
            .iter()
            .filter(move |(pattern, _)| host::is_subset(host, pattern))
            .map(|(_, position)| *position)
    }

    /// Everything that is for `host`, each once, in rising order.
    #[must_use]
    pub fn of(&self, host: &str) -> Vec<usize> {
        let mut found = self.named(host).to_vec();
        found.extend(self.covering(host));
        found.sort_unstable();
        found.dedup();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_wildcards_that_cover_a_host_are_found_in_order() {
        let mut index = HostIndex::default();
        let hosts = ["*", "a.x", "*.x", "b.x", "*.y", "a.x"];
        for (position, host) in hosts.into_iter().enumerate() {
            index.add(host, position);
        }
        index.add("*.x", 5);
        assert_eq!(index.of("a.x"), [0, 1, 2, 5]);
        assert_eq!(index.of("*.x"), [0, 2, 5]);
        assert_eq!(index.of("*.z.y"), [0, 4]);
        assert_eq!(index.of("*"), [0]);
        assert_eq!(index.named("a.x"), [1, 5]);
    }
}
