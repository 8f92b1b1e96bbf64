//! `bookinfo productpage|details|reviews|ratings`: one service of the bookinfo sample.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use e2e::bookinfo::client::ServiceClient;
use e2e::bookinfo::productpage::{self, ProductPage};
use e2e::bookinfo::reviews::{self, ReviewsService};
use e2e::bookinfo::{details, ratings, serve};

/// One service of the bookinfo sample.
#[derive(Parser)]
struct Arguments {
    /// Port to listen on.
    #[arg(long, env = "PORT", default_value_t = 9080, global = true)]
    port: u16,
    /// Where to listen, of all addresses.
    #[arg(
        long,
        env = "BIREME_LISTEN_ADDRESS",
        default_value = "0.0.0.0",
        global = true
    )]
    address: IpAddr,
    #[command(subcommand)]
    service: Service,
}

#[derive(Subcommand)]
enum Service {
    /// The page.
    Productpage {
        /// Where `details` answers.
        #[arg(long, env = "DETAILS_URL", default_value = "http://details:9080")]
        details: String,
        /// Where `reviews` answers.
        #[arg(long, env = "REVIEWS_URL", default_value = "http://reviews:9080")]
        reviews: String,
        #[command(flatten)]
        calls: Calls,
    },
    /// The facts about the book.
    Details,
    /// What readers thought.
    Reviews {
        /// v1 shows no stars, v2 black ones, v3 red ones.
        #[arg(long, value_parser = ["v1", "v2", "v3"], default_value = "v1")]
        version: String,
        /// Where `ratings` answers.
        #[arg(long, env = "RATINGS_URL", default_value = "http://ratings:9080")]
        ratings: String,
        /// The name of this pod.
        #[arg(long, env = "HOSTNAME", default_value = "reviews")]
        pod: String,
        #[command(flatten)]
        calls: Calls,
    },
    /// How many stars they gave.
    Ratings,
}

#[derive(Args)]
struct Calls {
    /// How long a call to another service may take, in seconds.
    #[arg(long, default_value_t = 10)]
    deadline: u64,
    /// A forward proxy, `host:port`, for all calls.
    #[arg(long, env = "http_proxy")]
    forward_proxy: Option<String>,
}

impl Calls {
    fn client(self) -> ServiceClient {
        let proxy = self.forward_proxy.map(|proxy| {
            proxy
                .trim_start_matches("http://")
                .trim_end_matches('/')
                .to_owned()
        });
        ServiceClient::new(
            Duration::from_secs(self.deadline),
            proxy.filter(|proxy| !proxy.is_empty()),
        )
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let arguments = Arguments::parse();
    let routes = match arguments.service {
        Service::Productpage {
            details,
            reviews,
            calls,
        } => productpage::routes(ProductPage {
            details,
            reviews,
            client: calls.client(),
        }),
        Service::Details => details::routes(),
        Service::Reviews {
            version,
            ratings,
            pod,
            calls,
        } => {
            let star_color = match version.as_str() {
                "v2" => Some("black".to_owned()),
                "v3" => Some("red".to_owned()),
                _ => None,
            };
            reviews::routes(ReviewsService {
                star_color,
                ratings,
                pod,
                client: calls.client(),
            })
        }
        Service::Ratings => ratings::routes(),
    };
    match serve((arguments.address, arguments.port).into(), routes).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "bookinfo ended");
            ExitCode::from(2)
        }
    }
}
