//! A list, ready to be asked.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use regex::Regex;
use serde::Deserialize;

use super::EntryType;
use crate::lang::re2;

/// Entries of one type.
#[derive(Debug)]
pub(super) enum Entries {
    Strings(HashSet<String>),
    /// In upper case.
    CaseInsensitive(HashSet<String>),
    Networks(Vec<IpNet>),
    Patterns(Vec<Regex>),
}

/// The document of an address list.
#[derive(Deserialize)]
struct AddressList {
    #[serde(default)]
    whitelist: Vec<String>,
}

impl Entries {
    /// From single entries.
    pub(super) fn parse(kind: EntryType, entries: &[String]) -> Result<Self, String> {
        Ok(match kind {
            EntryType::Strings => Entries::Strings(entries.iter().cloned().collect()),
            EntryType::CaseInsensitiveStrings => {
                Entries::CaseInsensitive(entries.iter().map(|entry| entry.to_uppercase()).collect())
            }
            EntryType::IpAddresses => Entries::Networks(
                entries
                    .iter()
                    .map(|entry| network(entry))
                    .collect::<Result<_, _>>()?,
            ),
            EntryType::Regex => Entries::Patterns(
                entries
                    .iter()
                    .map(|entry| re2::compile(entry))
                    .collect::<Result<_, _>>()?,
            ),
        })
    }

    /// From what a provider serves, with the overrides in it. Lines are taken as they are; only empty ones are skipped.
    pub(super) fn parse_body(
        kind: EntryType,
        body: &str,
        overrides: &[String],
    ) -> Result<Self, String> {
        let mut entries: Vec<String> = if kind == EntryType::IpAddresses {
            let list: AddressList =
                serde_saphyr::from_str(body).map_err(|error| error.to_string())?;
            list.whitelist
        } else {
            let lines = body.split('\n').filter(|line| !line.is_empty());
            lines.map(str::to_owned).collect()
        };
        entries.extend_from_slice(overrides);
        Self::parse(kind, &entries)
    }

    /// Whether `value` is on the list; an error when it cannot be compared with the entries.
    pub(super) fn contains(&self, value: &str) -> Result<bool, String> {
        Ok(match self {
            Entries::Strings(entries) => entries.contains(value),
            Entries::CaseInsensitive(entries) => entries.contains(&value.to_uppercase()),
            Entries::Networks(networks) => {
                let address: IpAddr = value
                    .parse()
                    .map_err(|_| format!("{value} is not a valid IP address"))?;
                let address = address.to_canonical();
                networks.iter().any(|network| network.contains(&address))
            }
            Entries::Patterns(patterns) => patterns.iter().any(|pattern| pattern.is_match(value)),
        })
    }
}

/// QUIRK: an address without a mask gets `/32`, which is a single address only for IPv4.
fn network(entry: &str) -> Result<IpNet, String> {
    let text = if entry.contains('/') {
        entry.to_owned()
    } else {
        format!("{entry}/32")
    };
    text.parse::<IpNet>()
        .map(|network| network.trunc())
        .map_err(|_| format!("{entry:?} is not an IP address or network"))
}
