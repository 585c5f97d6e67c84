//! Drivers by name.

use std::sync::Arc;

use crate::{Bare, BareOptions, Docker, DockerOptions, Driver, Error, Native, Oci, OciOptions, Options};

/// The names that [`driver`] knows.
pub const DRIVERS: &[&str] = &["native", "oci", "docker", "process"];

/// The options of all drivers; each takes its own.
#[derive(Debug, Clone, Default)]
pub struct DriverOptions {
    /// For `native`.
    pub native: Options,
    /// For `oci`.
    pub oci: OciOptions,
    /// For `docker`.
    pub docker: DockerOptions,
    /// For `process`.
    pub process: BareOptions,
}

/// A driver by its name.
///
/// # Errors
/// When there is none of this name, or when it cannot work here.
pub async fn driver(name: &str, options: DriverOptions) -> Result<Arc<dyn Driver>, Error> {
    Ok(match name {
        "native" => Arc::new(Native::new(options.native)),
        "oci" => {
            let made = tokio::task::spawn_blocking(move || Oci::new(options.oci)).await;
            Arc::new(made.map_err(|_| Error::Ended)??)
        }
        "docker" => Arc::new(Docker::connect(options.docker).await?),
        "process" => Arc::new(Bare::new(options.process)?),
        _ => {
            let why = format!("there is none of this name; there are {}", DRIVERS.join(", "));
            return Err(Error::Driver { driver: name.to_owned(), why });
        }
    })
}
