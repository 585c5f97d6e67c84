//! Addresses of names outside.

use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::ResolveHosts;

/// Finds the addresses of names outside.
#[async_trait]
pub trait Resolver: fmt::Debug + Send + Sync {
    /// The addresses of `name`, best first.
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// The machine's own names (`/etc/hosts`), and the resolvers that it is told of (`/etc/resolv.conf`); both are read again when
/// they change. Not the C library's, which in a static program has not all that the machine has set up.
pub struct SystemResolver {
    hosts: PathBuf,
    servers: PathBuf,
    /// Made from the file as it was then.
    made: Mutex<Option<(SystemTime, TokioResolver)>>,
}

impl fmt::Debug for SystemResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SystemResolver")
    }
}

impl Default for SystemResolver {
    fn default() -> SystemResolver {
        SystemResolver { hosts: "/etc/hosts".into(), servers: "/etc/resolv.conf".into(), made: Mutex::default() }
    }
}

impl SystemResolver {
    /// The one that asks the servers which are in the file now.
    fn current(&self) -> io::Result<TokioResolver> {
        let changed = fs::metadata(&self.servers)?.modified()?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, resolver)) = &*made
            && *then == changed
        {
            return Ok(resolver.clone());
        }
        let mut builder = TokioResolver::builder_tokio().map_err(io::Error::other)?;
        builder.options_mut().use_hosts_file = ResolveHosts::Never;
        let resolver = builder.build().map_err(io::Error::other)?;
        *made = Some((changed, resolver.clone()));
        Ok(resolver)
    }
}

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        // A machine without the file has no names of its own.
        let own = named(&fs::read_to_string(&self.hosts).unwrap_or_default(), name);
        if !own.is_empty() {
            return Ok(own);
        }
        // With the dot at the end no search domain of the machine is tried.
        let found = self.current()?.lookup_ip(format!("{name}.")).await.map_err(io::Error::other)?;
        Ok(found.iter().collect())
    }
}

/// The addresses that a file of hosts has for a name.
fn named(hosts: &str, name: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in hosts.lines() {
        let mut words = line.split('#').next().unwrap_or("").split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
        if words.any(|word| word.eq_ignore_ascii_case(name)) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_hosts_is_read_as_the_system_does() {
        let hosts = "# 1.1.1.1 a.test\n10.0.0.1\tA.test b.test # c.test\n\nnonsense a.test\n::2 a.test\n";
        let addresses = |name| named(hosts, name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(addresses("a.test"), ["10.0.0.1", "::2"]);
        assert_eq!(addresses("b.test"), ["10.0.0.1"]);
        assert_eq!(addresses("c.test"), Vec::<String>::new());
    }
}
