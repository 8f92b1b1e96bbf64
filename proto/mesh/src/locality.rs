//! Places: region, zone, subzone.

use std::fmt;

/// Where a workload is; parts that are unknown are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Locality {
    /// The region.
    pub region: String,
    /// The zone in the region.
    pub zone: String,
    /// The part of the zone.
    pub subzone: String,
}

impl Locality {
    /// Reads `region/zone/subzone`; missing parts are empty. Further slashes belong to the subzone.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        Self {
            region: parts.next().unwrap_or_default(),
            zone: parts.next().unwrap_or_default(),
            subzone: parts.next().unwrap_or_default(),
        }
    }

    /// Reads the value of the label `istio-locality`, in which `.` may stand for `/` (labels cannot have slashes).
    #[must_use]
    pub fn parse_label(text: &str) -> Self {
        if text.contains('/') {
            Self::parse(text)
        } else {
            Self::parse(&text.replace('.', "/"))
        }
    }

    /// True when nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.subzone.is_empty()
    }

    /// True when `pattern` (`*`, `region/*`, `region/zone/*`, `region`, …) covers this place.
    #[must_use]
    pub fn matches(&self, pattern: &str) -> bool {
        if pattern.is_empty() {
            return self.is_empty();
        }
        let pattern = Self::parse(pattern);
        for (wanted, found) in [
            (&pattern.region, &self.region),
            (&pattern.zone, &self.zone),
            (&pattern.subzone, &self.subzone),
        ] {
            if wanted == "*" || wanted.is_empty() {
                return true;
            }
            if wanted != found {
                return false;
            }
        }
        true
    }

    /// How far `other` is: 0 the same place, 1 the same zone, 2 the same region, 3 elsewhere.
    #[must_use]
    pub fn distance(&self, other: &Self) -> u32 {
        if self.region != other.region {
            3
        } else if self.zone != other.zone {
            2
        } else {
            u32::from(self.subzone != other.subzone)
        }
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.region)?;
        if !self.zone.is_empty() || !self.subzone.is_empty() {
            write!(f, "/{}", self.zone)?;
        }
        if !self.subzone.is_empty() {
            write!(f, "/{}", self.subzone)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_cover_places() {
        let place = Locality::parse("r/z/s");
        for (pattern, want) in [
            ("*", true),
            ("r", true),
            ("r/*", true),
            ("r/z/*", true),
            ("r/z/s", true),
            ("r/z", true),
            ("r/x/*", false),
            ("x", false),
            ("r/z/x", false),
            ("", false),
        ] {
            assert_eq!(place.matches(pattern), want, "{pattern}");
        }
    }

    #[test]
    fn nearer_places_are_nearer() {
        let here = Locality::parse("r/z/s");
        for (there, want) in [
            ("r/z/s", 0),
            ("r/z/x", 1),
            ("r/x/s", 2),
            ("x/z/s", 3),
            ("", 3),
        ] {
            assert_eq!(here.distance(&Locality::parse(there)), want);
        }
    }

    #[test]
    fn labels_may_have_dots_for_slashes() {
        assert_eq!(Locality::parse_label("r.z.s"), Locality::parse("r/z/s"));
        assert_eq!(Locality::parse_label("r.1/z"), Locality::parse("r.1/z"));
    }

    proptest! {
        #[test]
        fn a_place_survives_its_text(text in "[a-z]{1,3}(/[a-z]{1,3}(/[a-z]{1,3})?)?") {
            prop_assert_eq!(Locality::parse(&text).to_string(), text);
        }
    }
}
