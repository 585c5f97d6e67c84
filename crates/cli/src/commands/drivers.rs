//! How commands choose what makes sandboxes.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use palisade_sandbox::{BareOptions, DRIVERS, DockerOptions, Driver, DriverOptions, OciOptions, Options};

use crate::output::{Failure, Outcome};

/// What makes sandboxes.
#[derive(Debug, Clone, Args)]
pub(crate) struct DriverArgs {
    /// What makes sandboxes: the kernel itself (native), an OCI runtime (oci), Docker Engine or Podman (docker), or nothing
    /// (process, for development only).
    #[arg(long, value_name = "DRIVER", default_value = "native", value_parser = clap::builder::PossibleValuesParser::new(DRIVERS), help_heading = "Driver")]
    pub(crate) driver: String,
    /// The OCI runtime of `oci`, by name or path; the runtime that the engine of `docker` is to use.
    #[arg(long, value_name = "RUNTIME", help_heading = "Driver")]
    runtime: Option<String>,
    /// An argument for every call of the OCI runtime; may be repeated.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true, help_heading = "Driver")]
    runtime_argument: Vec<String>,
    /// The engine's socket.
    #[arg(long, value_name = "PATH", help_heading = "Driver")]
    engine: Option<String>,
    /// Let `process` run agents' commands on this machine with nothing around them.
    #[arg(long, help_heading = "Driver")]
    development: bool,
}

impl DriverArgs {
    /// Whether the images of sandboxes are the engine's own business.
    pub(crate) fn has_engine(&self) -> bool {
        self.driver == "docker"
    }

    /// The driver. `image` is for the engine's.
    pub(crate) async fn open(
        &self,
        native: Options,
        image: Option<&str>,
        scratch: Option<PathBuf>,
    ) -> Outcome<Arc<dyn Driver>> {
        let oci = OciOptions {
            runtime: self.runtime.clone().map_or_else(|| OciOptions::default().runtime, PathBuf::from),
            arguments: self.runtime_argument.clone(),
            scratch: scratch.clone(),
        };
        let docker = DockerOptions {
            socket: self.engine.clone(),
            image: image.unwrap_or_default().to_owned(),
            runtime: self.runtime.clone(),
            userns: None,
            scratch,
        };
        if self.has_engine() && image.is_none() {
            return Err(Failure::new("the docker driver needs an image")
                .why("the engine makes every sandbox from one")
                .fix("name it by digest or id with --image"));
        }
        let process = BareOptions { development: self.development, allow_root: false };
        let options = DriverOptions { native, oci, docker, process };
        palisade_sandbox::driver(&self.driver, options)
            .await
            .map_err(|why| Failure::new(format!("the driver {} cannot be used", self.driver)).why(why))
    }
}
