//! `palisade up`: both planes in one process.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use palisade_api::{EnvironmentId, Secret};
use palisade_server::keys::{self, KeyKind};
use palisade_worker::Worker;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cli::block_on;
use crate::client::{Client, bootstrap_file};
use crate::commands::server::{ServerArgs, announce};
use crate::commands::text;
use crate::commands::worker::{ServingArgs, failed, observer, options};
use crate::local::{self, Running};
use crate::output::{Context as _, Failure, Outcome, Output};
use crate::secret::Source;

/// The name of the environment that `up` serves and `run` uses.
const LOCAL: &str = "local";

/// Start both planes in one process: the server, an environment "local" and a worker for it.
#[derive(Debug, Args)]
#[command(after_help = "Then, in another terminal: palisade run --model scripted \"…\"\n\
                        SIGTERM and SIGINT end both in good order.")]
pub(crate) struct UpArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Certificates (PEM) to trust besides the system's, for the worker's connection to a server with TLS.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    #[command(flatten)]
    serving: ServingArgs,
}

/// The environment "local" of a server, made when it is not there.
pub(crate) async fn local_environment(client: &Client) -> Outcome<String> {
    let environments = client.list("list environments", "/v1/environments", &[], usize::MAX).await?;
    let own = |environment: &&Value| environment["name"] == LOCAL && environment["config"]["type"] == "self_hosted";
    // Lists begin with the newest; the first one made is the one that a worker serves.
    if let Some(environment) = environments.iter().rev().find(own) {
        return Ok(text(environment, "id"));
    }
    let body = json!({"name": LOCAL, "description": "Served by `palisade up`.", "config": {"type": "self_hosted"}});
    Ok(text(&client.post("create the environment", "/v1/environments", &body).await?, "id"))
}

/// The worker's key: the one that an earlier start left, or a new one.
async fn environment_key(server: &Running, state_dir: &Path, environment: &str) -> Outcome<(PathBuf, Secret)> {
    let path = state_dir.join(format!("{environment}.key"));
    if path.exists() {
        let key = Source::File(path.clone()).read("the environment's key")?;
        return Ok((path, key));
    }
    let kind = KeyKind::Environment { environment_id: EnvironmentId::from(environment) };
    let (_, key) = keys::create(&*server.store, kind, "palisade up", server.clock.now())
        .await
        .context("the environment's key cannot be made")?;
    local::write_whole(&path, key.expose().as_bytes()).context("the environment's key cannot be kept")?;
    Ok((path, key))
}

pub(crate) fn run(args: &UpArgs, out: Output) -> Outcome {
    local::harden();
    local::log(args.server.log_format, "warn,audit=info");
    let setup = args.server.setup()?;
    block_on(async {
        let mut server = Running::start(setup).await?;
        let (worker, key_file) = match worker(&server, args, out).await {
            Ok(made) => made,
            Err(failure) => {
                server.shutdown().await;
                return Err(failure);
            }
        };
        // Whoever has read where it listens may ask it to end.
        let asked = local::asked_to_end();
        announce(&server, out);
        let stop = CancellationToken::new();
        let mut work = tokio::spawn(worker.run(stop.clone()));
        let mut over = None;
        let mut failure = tokio::select! {
            asked = asked => asked.err(),
            failure = server.failed() => Some(failure),
            ended = &mut work => {
                over = Some(ended);
                None
            }
        };
        // The worker goes first: it hands in its last results and gives its leases back.
        stop.cancel();
        let ended = match over {
            Some(ended) => ended,
            None => work.await,
        };
        server.shutdown().await;
        failure = failure.or(match ended {
            Ok(Ok(_)) => None,
            Ok(Err(why @ palisade_worker::Error::Unauthorized { .. })) => {
                let fix = format!("if the key was revoked, remove {} to have a new one made", key_file.display());
                Some(failed(&why).fix(fix))
            }
            Ok(Err(why)) => Some(failed(&why)),
            Err(why) => Some(Failure::new("the worker ended").why(why)),
        });
        failure.map_or(Ok(ExitCode::SUCCESS), Err)
    })?
}

/// A worker for the environment "local" of this server, and the file of its key.
async fn worker(server: &Running, args: &UpArgs, out: Output) -> Outcome<(Worker, PathBuf)> {
    let state_dir = args.server.state.path()?;
    let bootstrap = bootstrap_file(&state_dir);
    let another = format!("`palisade keys create api > {}` makes another key", bootstrap.display());
    let api_key = Source::File(bootstrap).read("the API key").map_err(|failure| failure.fix(&another))?;
    let client = Client::new(&server.local_url, api_key, args.ca_file.as_deref())?;
    let environment = local_environment(&client).await;
    let environment =
        environment.map_err(|failure| if failure.is_unauthorized() { failure.fix(&another) } else { failure })?;
    let (key_file, key) = environment_key(server, &state_dir, &environment).await?;
    let mut options = options(&server.local_url, &environment, &key, local::make_state_dir(&state_dir.join("worker"))?);
    args.serving.apply(&mut options, &args.server.state).await?;
    options.ca_file.clone_from(&args.ca_file);
    // The worker's connection does not leave this machine, whatever the address is called.
    options.insecure_http = args.server.allow_plaintext;
    options.on_event = Some(observer(out));
    let worker = Worker::new(options).map_err(|why| failed(&why))?;
    Ok((worker, key_file))
}
