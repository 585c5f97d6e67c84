//! `palisade server`: the control plane.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use palisade_core::session::Rules;
use palisade_core::work::Leases;
use palisade_engine::model::{Anthropic, AnthropicOptions, KeySource, Models, Script, Scripted};
use serde_json::json;

use crate::cli::{StateDir, block_on};
use crate::local::{self, LogFormat, Running, Setup};
use crate::output::{Context as _, Failure, Outcome, Output, note};
use crate::secret;

/// Where the Messages API is, unless told otherwise.
const ANTHROPIC: &str = "https://api.anthropic.com";

/// Start the control plane: the Managed Agents API, the agent loop and the work queue.
#[derive(Debug, Args)]
#[command(after_help = "Prints one line, `listening on URL`, when it is ready. The log goes to standard error; \
                        PALISADE_LOG filters it. SIGTERM and SIGINT end it in good order.")]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) state: StateDir,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 8484)))]
    pub(crate) listen: SocketAddr,
    /// The certificate chain, as a PEM file.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key, as a PEM file.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Listen without TLS on an address that other machines reach: every key then crosses the network in the clear.
    #[arg(long)]
    pub(crate) allow_plaintext: bool,
    #[command(flatten)]
    pub(crate) models: ModelArgs,
    /// List prices by model id (YAML or JSON; cents per million tokens); sessions of other models cannot have a budget.
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// After how many seconds without a heartbeat a worker's session is offered to others.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=600))]
    lease_ttl: u32,
    /// How the log is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
}

/// Which models there are.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// A scripted model (YAML or JSON), served as `scripted:NAME`; the first one also as `scripted`. May be given again.
    /// Without any, `scripted` surveys the workspace.
    #[arg(long, value_name = "FILE", help_heading = "Models")]
    pub(crate) script: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) provider: ProviderArgs,
}

/// The Messages API, as a provider of models.
#[derive(Debug, Clone, Args)]
pub(crate) struct ProviderArgs {
    /// A file that holds the key of the Messages API, which then serves every other model.
    #[arg(long, value_name = "FILE", conflicts_with = "anthropic_key_env", help_heading = "Models")]
    anthropic_key_file: Option<PathBuf>,
    /// The environment variable that holds that key. It is taken out of the process's environment.
    #[arg(long, value_name = "NAME", help_heading = "Models")]
    anthropic_key_env: Option<String>,
    /// Where the Messages API is.
    #[arg(long, value_name = "URL", help_heading = "Models")]
    anthropic_base_url: Option<String>,
}

impl ModelArgs {
    /// The models that are meant.
    pub(crate) fn models(&self) -> Outcome<Models> {
        let mut models = Models::new();
        if self.script.is_empty() {
            let script = Script::parse(include_str!("scripted.yaml")).context("the built-in script cannot be used")?;
            models = with_script(models, script, true);
        }
        for (number, path) in self.script.iter().enumerate() {
            let what = format!("the script {} cannot be used", path.display());
            models = with_script(models, Script::load(path).context(what)?, number == 0);
        }
        self.provider.serve(models)
    }
}

impl ProviderArgs {
    /// Whether a provider was named.
    pub(crate) fn is_given(&self) -> bool {
        self.anthropic_key_file.is_some() || self.anthropic_key_env.is_some() || self.anthropic_base_url.is_some()
    }

    /// Has the provider, if one was named, serve every other model.
    pub(crate) fn serve(&self, models: Models) -> Outcome<Models> {
        let key = match (&self.anthropic_key_file, &self.anthropic_key_env) {
            (Some(path), _) => Some(KeySource::File(path.clone()).read().context("no model provider")?),
            (None, Some(name)) => Some(secret::taken_from_environment(name, "the model provider's key")?),
            // A gateway of one's own may want no key.
            (None, None) if self.anthropic_base_url.is_some() => None,
            (None, None) => return Ok(models),
        };
        crate::client::install_crypto();
        let url = self.anthropic_base_url.as_deref().unwrap_or(ANTHROPIC);
        let client = Anthropic::new(AnthropicOptions::new(url, key)).context("the model provider cannot be used")?;
        Ok(models.with_default(Arc::new(client)))
    }
}

/// Serves a script as `scripted:NAME`, and as `scripted` when it is the first.
pub(crate) fn with_script(models: Models, script: Script, first: bool) -> Models {
    let name = format!("scripted:{}", script.name());
    let client = Arc::new(Scripted::new(script));
    let models = models.with_model(name, client.clone());
    if first { models.with_model("scripted", client) } else { models }
}

impl ServerArgs {
    /// What the server is started with.
    pub(crate) fn setup(&self) -> Outcome<Setup> {
        let mut rules = Rules::default();
        if let Some(path) = &self.prices {
            let what = || format!("the prices in {} cannot be used", path.display());
            let text = std::fs::read_to_string(path).context(what())?;
            rules.prices = serde_yaml_ng::from_str(&text).map_err(|why| {
                Failure::new(what())
                    .why(why)
                    .fix("write MODEL_ID: {input, output, cache_read, cache_write}, in cents per million tokens")
            })?;
        }
        let ttl = i64::from(self.lease_ttl) * 1_000_000;
        Ok(Setup {
            state_dir: self.state.path()?,
            listen: self.listen,
            tls: self.tls_cert.clone().zip(self.tls_key.clone()),
            allow_plaintext: self.allow_plaintext,
            models: self.models.models()?,
            rules,
            leases: Leases { ttl, start: ttl.min(Leases::default().start), ..Leases::default() },
        })
    }
}

/// Says that the server is ready, and where its first key is.
pub(crate) fn announce(server: &Running, out: Output) {
    if let Some(path) = &server.bootstrap {
        note(format!("an API key was written to {}", path.display()));
    }
    let bootstrap = server.bootstrap.as_ref().map(|path| path.display().to_string());
    out.either(
        &json!({"type": "listening", "url": server.url, "bootstrap_key_file": bootstrap}),
        format!("listening on {}", server.url),
    );
}

pub(crate) fn run(args: &ServerArgs, out: Output) -> Outcome {
    local::harden();
    local::seal();
    local::log(args.log_format, "info");
    let setup = args.setup()?;
    block_on(async {
        let mut server = Running::start(setup).await?;
        // Whoever has read where it listens may ask it to end.
        let asked = local::asked_to_end();
        announce(&server, out);
        let failed = tokio::select! {
            asked = asked => asked.err(),
            failure = server.failed() => Some(failure),
        };
        server.shutdown().await;
        failed.map_or(Ok(ExitCode::SUCCESS), Err)
    })?
}
