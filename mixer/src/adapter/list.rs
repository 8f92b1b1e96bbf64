//! `listchecker`: is a value on a list? The list is given in the parameters, read from a file or a URL again and again, or both.

mod entries;
mod provider;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use serde::Deserialize;
use serde_json::Value as Json;

use super::{Adapter, AdapterConfig, AdapterError, BuildContext, CheckResult, status};
use crate::config::params;
use crate::lang::Val;
use crate::template::{Payload, Values};
use entries::Entries;

/// How entries are compared.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum EntryType {
    #[default]
    Strings,
    CaseInsensitiveStrings,
    IpAddresses,
    Regex,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Params {
    #[serde(alias = "provider_url")]
    provider_url: String,
    #[serde(alias = "refresh_interval", deserialize_with = "params::duration")]
    refresh_interval: Duration,
    #[serde(deserialize_with = "params::duration")]
    ttl: Duration,
    #[serde(alias = "caching_interval", deserialize_with = "params::duration")]
    caching_interval: Duration,
    #[serde(alias = "caching_use_count")]
    caching_use_count: i32,
    overrides: Vec<String>,
    #[serde(alias = "entry_type")]
    entry_type: EntryType,
    blacklist: bool,
}

#[derive(Debug)]
struct ListChecker {
    params: Params,
    /// None until a list has been fetched, and after it has been stale for too long.
    list: ArcSwapOption<Entries>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            provider_url: String::new(),
            refresh_interval: Duration::from_secs(60),
            ttl: Duration::from_secs(300),
            caching_interval: Duration::from_secs(300),
            caching_use_count: 10_000,
            overrides: Vec::new(),
            entry_type: EntryType::Strings,
            blacklist: false,
        }
    }
}

pub(super) fn configure(json: &Json) -> Result<Box<dyn AdapterConfig>, String> {
    let params: Params = params::read(json)?;
    if !params.provider_url.is_empty() {
        provider::place(&params.provider_url).map_err(|e| format!("providerUrl: {e}"))?;
        if params.refresh_interval < Duration::from_secs(1) {
            return Err("refreshInterval: must be at least 1s".into());
        }
        if params.ttl < params.refresh_interval {
            return Err("ttl: must not be shorter than refreshInterval".into());
        }
    }
    Entries::parse(params.entry_type, &params.overrides).map_err(|e| format!("overrides: {e}"))?;
    Ok(Box::new(params))
}

impl AdapterConfig for Params {
    fn build(&self, _: &BuildContext) -> Result<Arc<dyn Adapter>, AdapterError> {
        let entries =
            Entries::parse(self.entry_type, &self.overrides).map_err(AdapterError::new)?;
        let place = (!self.provider_url.is_empty())
            .then(|| provider::place(&self.provider_url).map_err(AdapterError::new))
            .transpose()?;
        let list = ArcSwapOption::from(place.is_none().then(|| Arc::new(entries)));
        let checker = Arc::new(ListChecker {
            params: self.clone(),
            list,
        });
        if let Some(place) = place {
            provider::start(&checker, place);
        }
        Ok(checker)
    }
}

impl Adapter for ListChecker {
    fn check(&self, instance: &Values<'_>) -> Result<CheckResult, AdapterError> {
        let Payload::ListEntry { value } = &instance.payload else {
            return Err(AdapterError::unsupported());
        };
        let list = self.list.load();
        let Some(list) = list.as_ref() else {
            return Err(AdapterError::new("the list has not been fetched"));
        };
        let result = |code, message: String| CheckResult {
            status: status(code, message),
            valid_duration: self.params.caching_interval,
            valid_use_count: self.params.caching_use_count,
            outputs: Vec::new(),
        };
        if !matches!(value, Val::String(_) | Val::Ip(_)) {
            let message = "the value of a list entry is a STRING or an IP_ADDRESS";
            return Ok(result(tonic::Code::InvalidArgument, message.into()));
        }
        let text = value.to_text();
        let is_listed = match list.contains(&text) {
            Ok(is_listed) => is_listed,
            Err(problem) => return Ok(result(tonic::Code::InvalidArgument, problem)),
        };
        Ok(match (is_listed, self.params.blacklist) {
            (true, true) => result(
                tonic::Code::PermissionDenied,
                format!("{text} is blacklisted"),
            ),
            (false, false) => result(
                tonic::Code::PermissionDenied,
                format!("{text} is not whitelisted"),
            ),
            _ => result(tonic::Code::Ok, String::new()),
        })
    }
}

#[cfg(test)]
mod tests;
