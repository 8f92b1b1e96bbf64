//! A map by name in which every kind of value has the same tree: what is special to a kind is a list. Pilot keeps twice two dozen
//! of these maps, and a tree of its own for each of them was a quarter of Pilot's code.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Values by name, in the order of their names.
#[derive(Clone, Debug)]
pub struct ByName<V> {
    /// Where a name's value is in `values`.
    places: BTreeMap<Arc<str>, usize>,
    values: Vec<(Arc<str>, V)>,
}

impl<V> Default for ByName<V> {
    fn default() -> Self {
        ByName {
            places: BTreeMap::new(),
            values: Vec::new(),
        }
    }
}

impl<V> ByName<V> {
    /// The value called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&V> {
        let place = *self.places.get(name)?;
        Some(&self.values[place].1)
    }

    /// Adds or replaces a value.
    pub fn insert(&mut self, name: &str, value: V) {
        if let Some(place) = self.places.get(name) {
            self.values[*place].1 = value;
            return;
        }
        let name: Arc<str> = name.into();
        self.places.insert(name.clone(), self.values.len());
        self.values.push((name, value));
    }

    /// Takes the value called `name` out.
    pub fn remove(&mut self, name: &str) -> Option<V> {
        let place = self.places.remove(name)?;
        let (_, value) = self.values.swap_remove(place);
        // The last one is where the removed one was.
        if let Some((moved, _)) = self.values.get(place) {
            self.places.insert(moved.clone(), place);
        }
        Some(value)
    }

    /// Every name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(AsRef::as_ref)
    }

    /// Every value.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.places.values().map(|place| &self.values[*place].1)
    }

    /// Every name with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.names().zip(self.values())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec(("[a-d]", prop::option::of(0..9_u8)), 0..40)) {
            let mut map = ByName::default();
            let mut model = BTreeMap::new();
            for (name, value) in steps {
                match value {
                    Some(value) => {
                        map.insert(&name, value);
                        model.insert(name, value);
                    }
                    None => prop_assert_eq!(map.remove(&name), model.remove(&name)),
                }
                let all: Vec<(&str, &u8)> = map.iter().collect();
                let expected: Vec<(&str, &u8)> =
                    model.iter().map(|(name, value)| (name.as_str(), value)).collect();
                prop_assert_eq!(all, expected);
                prop_assert!(model.iter().all(|(name, value)| map.get(name) == Some(value)));
            }
        }
    }
}
