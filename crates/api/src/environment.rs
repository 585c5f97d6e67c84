//! Environments: where a session's tools run.

use serde::{Deserialize, Serialize};

use crate::{EnvironmentId, Extra, Metadata, MetadataPatch, Patch, Timestamp};

/// An environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Its id.
    pub id: EnvironmentId,
    /// Always `environment`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// Where tools run.
    pub config: EnvironmentConfig,
    /// Free pairs.
    pub metadata: Metadata,
    /// Who may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Where tools run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EnvironmentConfig {
    /// The hosted product's sandboxes.
    Cloud {
        /// What they may reach.
        networking: Networking,
        /// What is installed at the start.
        packages: Packages,
    },
    /// Workers that poll the environment's queue.
    SelfHosted {},
}

/// What a cloud sandbox may reach.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Networking {
    /// Anything.
    Unrestricted {},
    /// Only what is named.
    Limited {
        /// Bare hosts or `*.` wildcards.
        allowed_hosts: Vec<String>,
        /// The agent's MCP servers too.
        allow_mcp_servers: bool,
        /// The package registries too.
        allow_package_managers: bool,
    },
}

/// Packages by the tool that installs them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Packages {
    /// Always `packages`, when present.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Debian packages.
    #[serde(default)]
    pub apt: Vec<String>,
    /// Rust crates.
    #[serde(default)]
    pub cargo: Vec<String>,
    /// Ruby gems.
    #[serde(default)]
    pub gem: Vec<String>,
    /// Go modules.
    #[serde(default)]
    pub go: Vec<String>,
    /// Node packages.
    #[serde(default)]
    pub npm: Vec<String>,
    /// Python packages.
    #[serde(default)]
    pub pip: Vec<String>,
}

/// The body that creates an environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentCreate {
    /// Its name.
    pub name: String,
    /// Where tools run; a cloud environment without limits when left out.
    #[serde(default)]
    pub config: Option<EnvironmentConfigParam>,
    /// What it is for.
    #[serde(default)]
    pub description: Option<String>,
    /// Free pairs.
    #[serde(default)]
    pub metadata: Option<Metadata>,
    /// Who may use it.
    #[serde(default)]
    pub scope: Option<String>,
}

/// The body that changes an environment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentUpdate {
    /// A new name.
    #[serde(default)]
    pub name: Option<String>,
    /// A change of the configuration; the type must stay.
    #[serde(default)]
    pub config: Option<EnvironmentConfigParam>,
    /// A new description; null clears it.
    #[serde(default)]
    pub description: Patch<String>,
    /// Keys to set and to remove.
    #[serde(default)]
    pub metadata: Option<MetadataPatch>,
    /// Who may use it.
    #[serde(default)]
    pub scope: Option<String>,
}

/// A configuration as it is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum EnvironmentConfigParam {
    /// The hosted product's sandboxes.
    Cloud {
        /// What they may reach.
        #[serde(default)]
        networking: Option<NetworkingParam>,
        /// What is installed at the start.
        #[serde(default)]
        packages: Option<PackagesParam>,
    },
    /// Workers that poll the environment's queue.
    SelfHosted {},
}

/// Networking as it is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum NetworkingParam {
    /// Anything.
    Unrestricted {},
    /// Only what is named.
    Limited {
        /// Bare hosts or `*.` wildcards.
        #[serde(default)]
        allowed_hosts: Option<Vec<String>>,
        /// The agent's MCP servers too.
        #[serde(default)]
        allow_mcp_servers: Option<bool>,
        /// The package registries too.
        #[serde(default)]
        allow_package_managers: Option<bool>,
    },
}

/// Packages as they are asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "as in Packages")]
pub struct PackagesParam {
    #[serde(rename = "type", default)]
    pub kind: Option<String>,
    #[serde(default)]
    pub apt: Option<Vec<String>>,
    #[serde(default)]
    pub cargo: Option<Vec<String>>,
    #[serde(default)]
    pub gem: Option<Vec<String>>,
    #[serde(default)]
    pub go: Option<Vec<String>>,
    #[serde(default)]
    pub npm: Option<Vec<String>>,
    #[serde(default)]
    pub pip: Option<Vec<String>>,
}

impl EnvironmentConfigParam {
    /// The configuration that results when this is laid over `stored`, which must be of the same type.
    pub fn resolve(self, stored: Option<&EnvironmentConfig>) -> EnvironmentConfig {
        let (networking, packages) = match self {
            EnvironmentConfigParam::SelfHosted {} => return EnvironmentConfig::SelfHosted {},
            EnvironmentConfigParam::Cloud { networking, packages } => (networking, packages),
        };
        let (old_networking, old_packages) = match stored {
            Some(EnvironmentConfig::Cloud { networking, packages }) => (networking.clone(), packages.clone()),
            _ => (Networking::Unrestricted {}, Packages::default()),
        };
        let networking = match networking {
            None => old_networking,
            Some(NetworkingParam::Unrestricted {}) => Networking::Unrestricted {},
            Some(NetworkingParam::Limited { allowed_hosts, allow_mcp_servers, allow_package_managers }) => {
                let (hosts, mcp, managers) = match old_networking {
                    Networking::Limited { allowed_hosts, allow_mcp_servers, allow_package_managers } => {
                        (allowed_hosts, allow_mcp_servers, allow_package_managers)
                    }
                    Networking::Unrestricted {} => (Vec::new(), false, false),
                };
                Networking::Limited {
                    allowed_hosts: allowed_hosts.unwrap_or(hosts),
                    allow_mcp_servers: allow_mcp_servers.unwrap_or(mcp),
                    allow_package_managers: allow_package_managers.unwrap_or(managers),
                }
            }
        };
        let mut result = old_packages;
        result.kind = Some("packages".to_owned());
        if let Some(packages) = packages {
            result.apt = packages.apt.unwrap_or_default();
            result.cargo = packages.cargo.unwrap_or_default();
            result.gem = packages.gem.unwrap_or_default();
            result.go = packages.go.unwrap_or_default();
            result.npm = packages.npm.unwrap_or_default();
            result.pip = packages.pip.unwrap_or_default();
        }
        EnvironmentConfig::Cloud { networking, packages: result }
    }
}
