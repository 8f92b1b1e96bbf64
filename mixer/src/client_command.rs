//! `mixs check` and `mixs report`: one call to a Mixer, ours or another, with attributes from the command line.

use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use proto::istio::mixer::v1::check_request::QuotaParams;
use proto::istio::mixer::v1::check_response::{PreconditionResult, QuotaResult};
use proto::istio::mixer::v1::mixer_client::MixerClient;
use proto::istio::mixer::v1::referenced_attributes::Condition;
use proto::istio::mixer::v1::{
    CheckRequest, HeaderOperation, ReferencedAttributes, ReportRequest, header_operation,
};
use proto_component::grpc::{self, ClientOptions};
use proto_component::process::Usage;
use proto_mesh::attribute::codec::Words;
use proto_mesh::attribute::{codec, dictionary};
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::args::{CheckArgs, ClientArgs};
use crate::attribute_args::pairs;

/// Asks whether a request may pass; `true` when it may.
///
/// # Errors
/// When the attributes cannot be read, or Mixer does not answer.
pub async fn check(args: &CheckArgs, mut output: impl Write) -> anyhow::Result<bool> {
    let mut quotas = std::collections::BTreeMap::new();
    for (name, amount) in pairs(args.quotas.as_deref(), "--quotas")? {
        let amount = amount
            .parse()
            .map_err(|_| Usage(format!("--quotas: {amount:?} is not an amount")))?;
        let params = QuotaParams {
            amount,
            best_effort: args.best_effort,
        };
        quotas.insert(name, params);
    }
    let attributes = args.client.attributes.read()?;
    let request = CheckRequest {
        attributes: Some(codec::encode(&attributes, dictionary::WORDS.len())),
        global_word_count: u32::try_from(dictionary::WORDS.len())?,
        deduplication_id: args.deduplication_id.clone().unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            format!("mixs-{}", now.unwrap_or_default().as_nanos())
        }),
        quotas,
    };
    let mut client = dial(&args.client)?;
    let answer = client.check(timed(&args.client, request)).await;
    let response = answer.context("check")?.into_inner();
    let precondition = response.precondition.unwrap_or_default();
    let is_ok = show(&precondition, &mut output)?;
    for (name, quota) in &response.quotas {
        show_quota(name, quota, &mut output)?;
    }
    let granted = |quota: &QuotaResult| quota.granted_amount > 0;
    Ok(is_ok && response.quotas.values().all(granted))
}

/// Tells of something that is over.
///
/// # Errors
/// When the attributes cannot be read, or Mixer does not take them.
pub async fn report(args: &ClientArgs, mut output: impl Write) -> anyhow::Result<()> {
    let attributes = args.attributes.read()?;
    let message = codec::encode(&attributes, dictionary::WORDS.len());
    let request = ReportRequest {
        attributes: vec![message],
        global_word_count: u32::try_from(dictionary::WORDS.len())?,
        ..ReportRequest::default()
    };
    let mut client = dial(args)?;
    client
        .report(timed(args, request))
        .await
        .context("report")?;
    writeln!(output, "reported: {} attributes", attributes.len())?;
    Ok(())
}

fn dial(args: &ClientArgs) -> anyhow::Result<MixerClient<Channel>> {
    let tls = args.tls.then(|| args.certificates.client()).transpose()?;
    let options = ClientOptions {
        call_timeout: Some(args.timeout),
        ..ClientOptions::default()
    };
    let channel = grpc::channel(&args.mixer, tls, &options)
        .map_err(|error| Usage(format!("--mixer: {error}")))?;
    Ok(MixerClient::new(channel))
}

fn timed<T>(args: &ClientArgs, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(args.timeout);
    request
}

fn show(result: &PreconditionResult, output: &mut impl Write) -> anyhow::Result<bool> {
    let status = result.status.clone().unwrap_or_default();
    let code = Code::from(status.code);
    writeln!(output, "check: {code:?}{}", reason(&status.message))?;
    writeln!(
        output,
        "valid: {:?}, {} uses",
        duration(result.valid_duration),
        result.valid_use_count
    )?;
    if let Some(referenced) = &result.referenced_attributes {
        writeln!(output, "referenced: {}", referenced_text(referenced))?;
    }
    if let Some(directive) = &result.route_directive {
        if directive.direct_response_code != 0 {
            let code = directive.direct_response_code;
            let body = &directive.direct_response_body;
            writeln!(output, "direct response: {code} {body:?}")?;
        }
        for (side, operations) in [
            ("request", &directive.request_header_operations),
            ("response", &directive.response_header_operations),
        ] {
            for operation in operations {
                writeln!(output, "{side} header: {}", operation_text(operation))?;
            }
        }
    }
    Ok(code == Code::Ok)
}

fn show_quota(name: &str, quota: &QuotaResult, output: &mut impl Write) -> anyhow::Result<()> {
    let status = quota.status.clone().unwrap_or_default();
    let valid = duration(quota.valid_duration);
    let code = match Code::from(status.code) {
        Code::Ok => String::new(),
        code => format!(", {code:?}{}", reason(&status.message)),
    };
    let granted = quota.granted_amount;
    writeln!(
        output,
        "quota {name}: granted {granted} for {valid:?}{code}"
    )?;
    if let Some(referenced) = &quota.referenced_attributes {
        writeln!(output, "  referenced: {}", referenced_text(referenced))?;
    }
    Ok(())
}

fn reason(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(" ({message})")
    }
}

fn duration(wire: Option<prost_types::Duration>) -> Duration {
    wire.and_then(|wire| Duration::try_from(wire).ok())
        .unwrap_or_default()
}

fn operation_text(operation: &HeaderOperation) -> String {
    use header_operation::Operation;
    let (name, value) = (&operation.name, &operation.value);
    match Operation::try_from(operation.operation) {
        Ok(Operation::Remove) => format!("remove {name}"),
        Ok(Operation::Append) => format!("append {name}: {value}"),
        _ => format!("set {name}: {value}"),
    }
}

/// `name`, `name[key]`, `-name` for an absence, `name~regex`.
fn referenced_text(referenced: &ReferencedAttributes) -> String {
    let words = Words::new(&referenced.words);
    let word = |index| words.get(index).unwrap_or("?");
    let mut text: Vec<String> = referenced
        .attribute_matches
        .iter()
        .map(|found| {
            let key = match found.map_key {
                0 => String::new(),
                key => format!("[{}]", word(key)),
            };
            let name = format!("{}{key}", word(found.name));
            match Condition::try_from(found.condition) {
                Ok(Condition::Absence) => format!("-{name}"),
                Ok(Condition::Regex) => format!("{name}~{}", found.regex),
                _ => name,
            }
        })
        .collect();
    text.sort();
    text.join(", ")
}
