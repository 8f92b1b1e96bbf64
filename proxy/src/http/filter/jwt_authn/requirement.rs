//! Requirements: which providers' tokens a request must carry.

use proto::envoy::extensions::filters::http::jwt_authn::v3 as wire;
use proto_mesh::jwt::Failure;
use wire::jwt_requirement::RequiresType;

use crate::http::headers::RequestHeaders;
use crate::invalid::{At as _, Invalid, try_all};

use super::provider::{Provider, VerifiedToken};

/// A checked requirement; providers by index.
#[derive(Debug, Clone)]
pub(super) enum Requirement {
    Provider(usize, Option<Vec<String>>),
    /// One of these; the flags are "or no token", "or a bad one".
    Any(Vec<Requirement>, bool, bool),
    All(Vec<Requirement>),
}

/// One request's tokens, each looked at once a provider and its audiences.
pub(super) struct Evaluation<'p, 'h> {
    providers: &'p [Provider],
    headers: &'h RequestHeaders,
    results: Vec<Verified<'p>>,
}

/// What came of a provider's tokens, asked for with these audiences.
struct Verified<'p> {
    provider: usize,
    audiences: Option<&'p [String]>,
    result: Result<Vec<VerifiedToken>, Failure>,
}

impl Requirement {
    pub(super) fn try_new(
        requirement: &wire::JwtRequirement,
        names: &[&String],
    ) -> Result<Self, Invalid> {
        let index = |name: &String| {
            names
                .binary_search(&name)
                .map_err(|_| Invalid::new(format!("no provider is called '{name}'")))
        };
        let requires = requirement
            .requires_type
            .as_ref()
            .ok_or_else(|| Invalid::new("an empty requirement"))?;
        Ok(match requires {
            RequiresType::ProviderName(name) => Requirement::Provider(index(name)?, None),
            RequiresType::ProviderAndAudiences(provider) => Requirement::Provider(
                index(&provider.provider_name)?,
                Some(provider.audiences.clone()),
            ),
            RequiresType::RequiresAny(any) => {
                Requirement::any(&any.requirements, names).at("requires_any")?
            }
            RequiresType::RequiresAll(all) => Requirement::All(
                try_all("requirements", &all.requirements, |one| {
                    Requirement::try_new(one, names)
                })
                .at("requires_all")?,
            ),
            RequiresType::AllowMissing(()) => Requirement::Any(Vec::new(), true, false),
            RequiresType::AllowMissingOrFailed(()) => Requirement::Any(Vec::new(), true, true),
            RequiresType::ExtractOnlyWithoutValidation(_) => {
                return Err(Invalid::unsupported("extract_only_without_validation"));
            }
        })
    }

    /// `allow_missing` inside a list speaks of the whole list.
    fn any(requirements: &[wire::JwtRequirement], names: &[&String]) -> Result<Self, Invalid> {
        let (mut missing, mut failed) = (false, false);
        let mut children = Vec::new();
        for (index, one) in requirements.iter().enumerate() {
            match one.requires_type {
                Some(RequiresType::AllowMissing(())) => missing = true,
                Some(RequiresType::AllowMissingOrFailed(())) => failed = true,
                _ => children.push(
                    Requirement::try_new(one, names).at(format_args!("requirements[{index}]"))?,
                ),
            }
        }
        Ok(Requirement::Any(children, missing, failed))
    }

    /// `allow_missing` alone: there is a token nobody asked for, or none; both are fine.
    pub(super) fn simplified(self) -> Self {
        match self {
            Requirement::Any(children, true, _) if children.is_empty() => {
                Requirement::All(Vec::new())
            }
            other => other,
        }
    }

    /// The providers it names.
    pub(super) fn providers(&self) -> Vec<usize> {
        match self {
            Requirement::Provider(index, _) => vec![*index],
            Requirement::Any(children, ..) | Requirement::All(children) => {
                let mut all: Vec<usize> =
                    children.iter().flat_map(Requirement::providers).collect();
                all.sort_unstable();
                all.dedup();
                all
            }
        }
    }

    pub(super) fn evaluate<'p>(
        &'p self,
        evaluation: &mut Evaluation<'p, '_>,
    ) -> Result<(), Failure> {
        match self {
            Requirement::Provider(index, audiences) => {
                evaluation.verify(*index, audiences.as_deref())
            }
            Requirement::All(children) => children
                .iter()
                .try_for_each(|child| child.evaluate(evaluation)),
            Requirement::Any(children, missing, failed) => {
                let mut worst: Option<Failure> = None;
                for child in children {
                    match child.evaluate(evaluation) {
                        Ok(()) => return Ok(()),
                        // A token that is wrong says more than one that is not there, or is another's.
                        Err(failure) => {
                            worst = Some(worst.map_or(failure, |worst| worst.max(failure)));
                        }
                    }
                }
                match worst {
                    None => Ok(()),
                    Some(_) if *failed => Ok(()),
                    Some(Failure::Missing) if *missing => Ok(()),
                    Some(failure) => Err(failure),
                }
            }
        }
    }
}

impl<'p, 'h> Evaluation<'p, 'h> {
    pub(super) fn new(providers: &'p [Provider], headers: &'h RequestHeaders) -> Self {
        Evaluation {
            providers,
            headers,
            results: Vec::new(),
        }
    }

    fn verify(&mut self, provider: usize, audiences: Option<&'p [String]>) -> Result<(), Failure> {
        let known = self
            .results
            .iter()
            .find(|known| known.provider == provider && known.audiences == audiences);
        if let Some(known) = known {
            return known
                .result
                .as_ref()
                .map(|_| ())
                .map_err(|failure| *failure);
        }
        let result = self.providers[provider].verify(self.headers, audiences);
        let outcome = result.as_ref().map(|_| ()).map_err(|failure| *failure);
        self.results.push(Verified {
            provider,
            audiences,
            result,
        });
        outcome
    }

    /// The good tokens, with their providers.
    pub(super) fn into_verified(mut self) -> Vec<(&'p Provider, VerifiedToken)> {
        let providers = self.providers;
        self.results.sort_by_key(|verified| verified.provider);
        self.results
            .into_iter()
            .filter_map(|verified| Some((verified.provider, verified.result.ok()?)))
            .flat_map(|(index, tokens)| tokens.into_iter().map(move |token| (index, token)))
            .map(|(index, token)| (&providers[index], token))
            .collect()
    }
}
