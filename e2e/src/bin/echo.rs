//! `echo serve|call|hold`: the workload of the tests of who gets through.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use e2e::echo::{
    Call, call,
    serve::{Seen, Server},
};
use http::StatusCode;

/// The workload of the tests of who gets through.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Serves.
    Serve(Box<Serving>),
    /// Makes calls and prints what came of them; both are JSON lists.
    Call {
        /// The calls.
        calls: String,
    },
    /// Keeps one connection busy; says `open`, then `cut` when the other side ends it, or `held` when standard input ends before.
    Hold {
        /// The call.
        call: String,
    },
}

/// What to serve, and where.
#[derive(Args)]
struct Serving {
    /// Where to listen, of all addresses.
    #[arg(long, env = "BIREME_LISTEN_ADDRESS", default_value = "0.0.0.0")]
    address: IpAddr,
    /// A port for HTTP.
    #[arg(long)]
    http: Vec<u16>,
    /// A socket's path for HTTP; everybody may connect to it.
    #[arg(long)]
    unix: Vec<PathBuf>,
    /// A port for HTTP over TLS.
    #[arg(long)]
    tls: Vec<u16>,
    /// A port for HTTP over TLS, for clients with a certificate.
    #[arg(long)]
    mutual_tls: Vec<u16>,
    /// Folder with tls.crt, tls.key and, for clients, ca.crt.
    #[arg(long, default_value = ".")]
    tls_files: PathBuf,
    /// A port for lines.
    #[arg(long)]
    tcp: Vec<u16>,
    /// A port for an external authorizer, which goes by header `x-check`.
    #[arg(long)]
    check: Vec<u16>,
    /// A fixed answer, `PATH=BODY`.
    #[arg(long, value_parser = parse_file)]
    file: Vec<(String, String)>,
    /// What it calls itself in its answers.
    #[arg(long, default_value = "")]
    name: String,
    /// The status of every answer.
    #[arg(long, default_value = "200")]
    status: StatusCode,
}

fn parse_file(text: &str) -> Result<(String, String), String> {
    let (path, body) = text.split_once('=').ok_or("write PATH=BODY")?;
    Ok((path.to_owned(), body.to_owned()))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse().role).await {
        Ok(Some(text)) => {
            say(&text);
            ExitCode::SUCCESS
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => proto_component::process::exit_code("echo", Err(error)),
    }
}

async fn run(role: Role) -> anyhow::Result<Option<String>> {
    match role {
        Role::Serve(serving) => {
            let server = Server {
                address: serving.address,
                http: serving.http,
                unix: serving.unix,
                tls: serving.tls,
                mutual_tls: serving.mutual_tls,
                tls_files: serving.tls_files,
                tcp: serving.tcp,
                check: serving.check,
                files: serving.file,
                name: serving.name,
                status: serving.status,
                seen: Seen::default(),
            };
            server.run().await.map(|()| None)
        }
        Role::Call { calls } => {
            let calls: Vec<Call> = serde_json::from_str(&calls).context("read the calls")?;
            let outcomes = call::all(&calls).await;
            Ok(Some(serde_json::to_string(&outcomes)?))
        }
        Role::Hold { call } => {
            let wanted: Call = serde_json::from_str(&call).context("read the call")?;
            let end = tokio::select! {
                outcome = call::hold(&wanted, || say("open")) => outcome.map(|()| "cut")?,
                () = input_ends() => "held",
            };
            Ok(Some(end.to_owned()))
        }
    }
}

/// Resolves when nobody writes to standard input any more.
async fn input_ends() {
    let (ends, ended) = tokio::sync::oneshot::channel::<()>();
    // A thread of its own: the runtime would wait for one of its own.
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(ends);
    });
    let _ = ended.await;
}

fn say(text: &str) {
    // Nobody reads any more: nothing is left to do.
    let _ = writeln!(std::io::stdout(), "{text}");
}
