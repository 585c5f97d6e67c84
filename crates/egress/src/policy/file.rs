//! The file in which a policy is written.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::Mode;
use super::address::Block;
use super::path::Pattern;
use super::preset::{PACKAGE_MANAGERS, PRESETS, Preset};
use super::rule::{HostPattern, Layer, Ports, Rule, Wire};
use crate::git::{PushRules, RefPattern};
use crate::{Host, NameError};

/// The most bytes of a file, and rules of a section.
const BYTES: usize = 1 << 20;
const RULES: usize = 4096;

/// Why a policy cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// More than a policy has.
    #[error("the egress policy is longer than 1 MiB: name hosts by `*.` suffix, or split it by environment")]
    Long,
    /// It is not YAML of the right shape.
    #[error("the egress policy cannot be read{}: {reason}. docs/reference/egress-policy.md lists the keys", at(.path))]
    Shape {
        /// Where, as `environments.x.rules[0].host`; empty for the whole.
        path: String,
        /// What is wrong, as the parser says it.
        reason: String,
    },
    /// A field says something that cannot hold.
    #[error("the egress policy is wrong{}: {what}. {fix}", at(.path))]
    Field {
        /// Where.
        path: String,
        /// What is wrong.
        what: String,
        /// What to write instead.
        fix: String,
    },
}

fn at(path: &str) -> String {
    if path.is_empty() || path == "." { String::new() } else { format!(" at `{path}`") }
}

/// Sections by environment and agent.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) default: Option<Section>,
    #[serde(default)]
    pub(super) environments: Once<Section>,
    #[serde(default)]
    pub(super) agents: Once<Section>,
}

/// What holds for one environment or agent.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    presets: Vec<String>,
    #[serde(default)]
    rules: Vec<RawRule>,
    #[serde(default)]
    max_session_bytes: Option<Size>,
    #[serde(default)]
    requests_per_minute: Option<u32>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: String,
    #[serde(default)]
    host: Several<String>,
    #[serde(default)]
    address: Several<String>,
    #[serde(default)]
    ports: Option<Several<RawPorts>>,
    #[serde(default)]
    protocol: RawProtocol,
    #[serde(default)]
    tls: Option<RawTls>,
    #[serde(default)]
    methods: Option<Several<String>>,
    #[serde(default)]
    paths: Option<Several<String>>,
    #[serde(default)]
    encoded_slashes: bool,
    #[serde(default)]
    max_request_bytes: Option<Size>,
    #[serde(default)]
    requests_per_minute: Option<u32>,
    #[serde(default)]
    max_session_bytes: Option<Size>,
    #[serde(default)]
    private: bool,
    #[serde(default)]
    intercept: RawIntercept,
    #[serde(default)]
    websocket: bool,
    #[serde(default)]
    git: Option<RawGit>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGit {
    #[serde(default)]
    push: Several<String>,
    #[serde(default)]
    protected: Several<String>,
    #[serde(default)]
    delete: bool,
    #[serde(default = "yes")]
    create: bool,
    #[serde(default)]
    push_options: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawProtocol {
    #[default]
    Https,
    Tls,
    Tcp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawTls {
    Required,
    Optional,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum RawIntercept {
    #[default]
    Auto,
    Always,
}

impl<'de> Deserialize<'de> for RawIntercept {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = RawIntercept;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true or auto (pass-through without reading requests is `protocol: tls`)")
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<RawIntercept, E> {
                if value { Ok(RawIntercept::Always) } else { Err(E::invalid_value(de::Unexpected::Bool(value), &self)) }
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<RawIntercept, E> {
                if value == "auto" {
                    Ok(RawIntercept::Auto)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(value), &self))
                }
            }
        }
        from.deserialize_any(Reader)
    }
}

/// A number of bytes: `1048576`, `1 MiB`.
#[derive(Debug, Clone, Copy)]
struct Size(u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or one with a unit: 64 KiB, 10 MiB, 1 GiB")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Size, E> {
                Ok(Size(value))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
                let (number, unit) = text.split_at(digits);
                let shift = match unit.trim_start() {
                    "" | "B" => 0,
                    "KiB" => 10,
                    "MiB" => 20,
                    "GiB" => 30,
                    "TiB" => 40,
                    _ => return Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                };
                let number = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
                number.map(Size).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        from.deserialize_any(Reader)
    }
}

/// A port, or `8000-8999`.
#[derive(Debug, Clone, Copy)]
struct RawPorts(u16, u16);

impl<'de> Deserialize<'de> for RawPorts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = RawPorts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port from 1 to 65535, or a range such as 8000-8999")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<RawPorts, E> {
                match u16::try_from(value) {
                    Ok(port) if port > 0 => Ok(RawPorts(port, port)),
                    _ => Err(E::invalid_value(de::Unexpected::Unsigned(value), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawPorts, E> {
                let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                match (port(first.trim()), port(last.trim())) {
                    (Some(first), Some(last)) if first <= last => Ok(RawPorts(first, last)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        from.deserialize_any(Reader)
    }
}

/// One value, or a list.
#[derive(Debug, Clone)]
struct Several<T>(Vec<T>);

impl<T> Default for Several<T> {
    fn default() -> Self {
        Several(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Several<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = Several<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value or a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Several<T>, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(Several(values))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Several<T>, E> {
                T::deserialize(de::value::StrDeserializer::new(text)).map(|value| Several(vec![value]))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Several<T>, E> {
                T::deserialize(de::value::U64Deserializer::new(number)).map(|value| Several(vec![value]))
            }
        }
        from.deserialize_any(Reader(PhantomData))
    }
}

/// A map in which no key is written twice.
#[derive(Debug)]
pub(super) struct Once<T>(pub(super) BTreeMap<String, T>);

impl<T> Default for Once<T> {
    fn default() -> Self {
        Once(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Once<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = Once<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("sections by id or name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Once<T>, A::Error> {
                let mut map = BTreeMap::new();
                while let Some(key) = pairs.next_key::<String>()? {
                    if map.contains_key(&key) {
                        return Err(de::Error::custom(format!("`{key}` is there twice")));
                    }
                    let value = pairs.next_value()?;
                    map.insert(key, value);
                }
                Ok(Once(map))
            }
        }
        from.deserialize_map(Reader(PhantomData))
    }
}

/// Reads YAML. Nothing, or only comments, is a document without keys.
pub(super) fn read<T: Default + for<'de> Deserialize<'de>>(yaml: &str) -> Result<T, PolicyError> {
    if yaml.len() > BYTES {
        return Err(PolicyError::Long);
    }
    if yaml.lines().all(|line| matches!(line.trim_start().chars().next(), None | Some('#'))) {
        return Ok(T::default());
    }
    serde_path_to_error::deserialize(serde_yaml_ng::Deserializer::from_str(yaml)).map_err(|error| {
        let path = error.path().to_string();
        PolicyError::Shape { path, reason: error.into_inner().to_string() }
    })
}

fn wrong(path: String, what: impl fmt::Display, fix: &str) -> PolicyError {
    PolicyError::Field { path, what: what.to_string(), fix: fix.to_owned() }
}

impl Section {
    /// Compiles a section. `place` is where it is in the file, `scope` what its rules' names begin with.
    pub(super) fn compile(self, place: &str, scope: &str) -> Result<Layer, PolicyError> {
        let place = |rest: String| if place.is_empty() { rest } else { format!("{place}.{rest}") };
        if self.rules.len() > RULES {
            let what = format!("there are {} rules, and at most {RULES} in a section", self.rules.len());
            return Err(wrong(place("rules".to_owned()), what, "Name hosts by `*.` suffix"));
        }
        if self.requests_per_minute == Some(0) {
            return Err(zero(place("requests_per_minute".to_owned())));
        }
        let mut rules = Vec::new();
        let mut names = HashSet::new();
        for (number, raw) in self.rules.into_iter().enumerate() {
            let place = |field: &str| place(format!("rules[{number}].{field}"));
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if raw.name.is_empty() || raw.name.len() > 64 || !raw.name.chars().all(good) {
                let what = format!("{:?} is no name of a rule", raw.name);
                return Err(wrong(place("name"), what, "Write 1 to 64 letters, digits, -, _ or ."));
            }
            if !names.insert(raw.name.clone()) {
                let what = format!("another rule is called `{}`", raw.name);
                return Err(wrong(place("name"), what, "Give each rule its own name, since records carry it"));
            }
            rules.push(raw.compile(&place, scope)?);
        }
        let mut taken = HashSet::new();
        for (number, name) in self.presets.iter().enumerate() {
            let place = place(format!("presets[{number}]"));
            let members: Vec<&Preset> = if name == "package-managers" {
                PRESETS.iter().filter(|preset| PACKAGE_MANAGERS.contains(&preset.name)).collect()
            } else {
                PRESETS.iter().filter(|preset| preset.name == name).collect()
            };
            if members.is_empty() {
                let known: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
                let fix = format!("Write one of {}, package-managers, or a rule of your own", known.join(", "));
                return Err(wrong(place, format!("there is no preset `{name}`"), &fix));
            }
            for preset in members {
                if taken.insert(preset.name) {
                    preset_rules(preset, scope, &mut rules);
                }
            }
        }
        Ok(Layer::new(self.mode, rules, self.max_session_bytes.map(|size| size.0), self.requests_per_minute))
    }
}

fn zero(place: String) -> PolicyError {
    wrong(place, "0 requests per minute allow nothing", "Write at least 1, or leave the rule out")
}

fn preset_rules(preset: &Preset, scope: &str, rules: &mut Vec<Rule>) {
    let hosts: Vec<HostPattern> = preset.hosts.iter().filter_map(|host| host_pattern(host).ok()).collect();
    let reading = Rule {
        name: format!("{scope}preset:{}", preset.name).into(),
        hosts,
        addresses: Vec::new(),
        ports: Ports::new(if preset.plain { vec![(443, 443), (80, 80)] } else { vec![(443, 443)] }),
        wire: Wire::Https { plain: preset.plain },
        methods: Some(vec!["GET".into()]),
        paths: None,
        encoded_slashes: true,
        max_request_bytes: None,
        requests_per_minute: None,
        max_session_bytes: None,
        private: false,
        inspects: true,
        websocket: false,
        push: None,
    };
    if !preset.posts.is_empty() {
        rules.push(Rule {
            name: format!("{scope}preset:{}:post", preset.name).into(),
            methods: Some(vec!["POST".into()]),
            paths: Some(preset.posts.iter().filter_map(|path| path.parse().ok()).collect()),
            ..reading.clone()
        });
    }
    rules.push(reading);
}

impl RawRule {
    fn compile(self, place: &dyn Fn(&str) -> String, scope: &str) -> Result<Rule, PolicyError> {
        let one = |field: &str, list: usize, number: usize| {
            if list == 1 { place(field) } else { place(&format!("{field}[{number}]")) }
        };
        let mut hosts = Vec::new();
        let count = self.host.0.len();
        for (number, text) in self.host.0.iter().enumerate() {
            let host = host_pattern(text).map_err(|(what, fix)| wrong(one("host", count, number), what, &fix))?;
            hosts.push(host);
        }
        let mut addresses = Vec::new();
        let count = self.address.0.len();
        for (number, text) in self.address.0.iter().enumerate() {
            let block: Block = text.parse().map_err(|why| {
                let fix = "Write an address or a block, such as 10.1.2.3 or 10.0.0.0/8";
                wrong(one("address", count, number), format!("{text:?}: {why}"), fix)
            })?;
            addresses.push(block);
        }
        if hosts.is_empty() && addresses.is_empty() {
            let fix = "Name a host (`host: api.example.com` or `host: \"*.example.com\"`) or an address";
            return Err(wrong(place("host"), "the rule names nothing to reach", fix));
        }
        let plain = self.tls == Some(RawTls::Optional);
        let wire = match self.protocol {
            RawProtocol::Https => Wire::Https { plain },
            RawProtocol::Tls => Wire::Tls,
            RawProtocol::Tcp => Wire::Tcp,
        };
        let https = self.protocol == RawProtocol::Https;
        for (field, given) in [
            ("tls", self.tls.is_some()),
            ("methods", self.methods.is_some()),
            ("paths", self.paths.is_some()),
            ("encoded_slashes", self.encoded_slashes),
            ("max_request_bytes", self.max_request_bytes.is_some()),
            ("requests_per_minute", self.requests_per_minute.is_some()),
            ("intercept", self.intercept == RawIntercept::Always),
            ("websocket", self.websocket),
            ("git", self.git.is_some()),
        ] {
            if given && !https {
                let what = format!("`{field}` is about requests, which are not read with this protocol");
                return Err(wrong(place(field), what, "Leave it out, or write `protocol: https`"));
            }
        }
        let ports = match self.ports {
            Some(Several(ports)) if ports.is_empty() => {
                return Err(wrong(place("ports"), "the list is empty", "Name a port, or leave it out for 443"));
            }
            Some(Several(ports)) => Ports::new(ports.into_iter().map(|RawPorts(first, last)| (first, last)).collect()),
            None if wire == Wire::Tcp => {
                let fix = "Name the ports, such as `ports: [5432]`";
                return Err(wrong(place("ports"), "`protocol: tcp` has no usual port", fix));
            }
            None if plain => Ports::new(vec![(443, 443), (80, 80)]),
            None => Ports::new(vec![(443, 443)]),
        };
        let methods = self.methods.map(|list| methods(&list.0, place)).transpose()?;
        let paths = self.paths.map(|list| paths(&list.0, place)).transpose()?;
        if self.encoded_slashes && paths.is_none() {
            let what = "it changes how `paths` are compared, and there are none";
            return Err(wrong(place("encoded_slashes"), what, "Leave it out"));
        }
        if self.requests_per_minute == Some(0) {
            return Err(zero(place("requests_per_minute")));
        }
        let push = self.git.map(|git| git.compile(place)).transpose()?;
        let inspects = https
            && (methods.is_some()
                || paths.is_some()
                || self.max_request_bytes.is_some()
                || self.requests_per_minute.is_some()
                || push.is_some()
                || self.intercept == RawIntercept::Always);
        Ok(Rule {
            name: format!("{scope}{}", self.name).into(),
            hosts,
            addresses,
            ports,
            wire,
            methods,
            paths,
            encoded_slashes: self.encoded_slashes,
            max_request_bytes: self.max_request_bytes.map(|size| size.0),
            requests_per_minute: self.requests_per_minute,
            max_session_bytes: self.max_session_bytes.map(|size| size.0),
            private: self.private,
            inspects,
            websocket: self.websocket,
            push: push.map(Arc::new),
        })
    }
}

fn methods(list: &[String], place: &dyn Fn(&str) -> String) -> Result<Vec<Box<str>>, PolicyError> {
    if list.is_empty() {
        return Err(wrong(place("methods"), "the list is empty", "Name a method, or leave it out for all"));
    }
    list.iter()
        .map(|method| {
            if method == "CONNECT" {
                let fix = "Leave it out: WebSockets are allowed by `websocket: true`";
                Err(wrong(place("methods"), "CONNECT opens a tunnel, in which nothing can be decided", fix))
            } else if method.is_empty()
                || method.len() > 32
                || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
            {
                Err(wrong(place("methods"), format!("{method:?} is no method"), "Write it in capitals: GET, POST"))
            } else {
                Ok(method.as_str().into())
            }
        })
        .collect()
}

fn paths(list: &[String], place: &dyn Fn(&str) -> String) -> Result<Vec<Pattern>, PolicyError> {
    if list.is_empty() {
        return Err(wrong(place("paths"), "the list is empty", "Name a path, or leave it out for all"));
    }
    list.iter()
        .map(|text| {
            text.parse().map_err(|why| {
                let fix = "Write a path from the root; * is any text in a segment, ** any segments, a / at the end \
                           everything below";
                wrong(place("paths"), format!("{text:?}: {why}"), fix)
            })
        })
        .collect()
}

impl RawGit {
    fn compile(self, place: &dyn Fn(&str) -> String) -> Result<PushRules, PolicyError> {
        let refs = |field: &str, list: &[String]| {
            list.iter()
                .map(|text| {
                    text.parse::<RefPattern>().map_err(|why| {
                        let fix = "Write full names, such as refs/heads/agent/*; * is any text, slashes included";
                        wrong(place(&format!("git.{field}")), format!("{text:?}: {why}"), fix)
                    })
                })
                .collect::<Result<Vec<_>, _>>()
        };
        let rules = PushRules::new(refs("push", &self.push.0)?, refs("protected", &self.protected.0)?);
        Ok(rules.with_delete(self.delete).with_create(self.create).with_options(self.push_options))
    }
}

/// A host as rules write it; or what is wrong with it, and what to write.
fn host_pattern(text: &str) -> Result<HostPattern, (String, String)> {
    let (suffix, rest) = match text.strip_prefix("*.") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if rest.contains('*') {
        let what = format!("{text:?}: a star stands only at the beginning, as *.");
        return Err((what, "Write *.example.com for all names below example.com, or each name".to_owned()));
    }
    if rest.contains("://") || rest.contains('/') {
        return Err((
            format!("{text:?} is a URL or path"),
            "Write the host alone; `paths` and `ports` are keys".to_owned(),
        ));
    }
    if let Some(label) = rest.split('.').find(|label| is_mixed(label)) {
        let what = format!("{text:?}: `{label}` mixes letters of scripts that look alike");
        return Err((what, "If this name is meant, write it in its ASCII form (xn--…)".to_owned()));
    }
    match rest.parse::<Host>() {
        Ok(Host::Name(name)) if suffix => Ok(HostPattern::Below(name)),
        Ok(Host::Name(name)) => Ok(HostPattern::Exactly(name)),
        Ok(Host::Address(_)) => Err((format!("{text:?} is an address"), format!("Write it as `address: {rest}`"))),
        Err(NameError::Character(':')) => {
            Err((format!("{text:?} has a port"), "Write the host alone, and the port in `ports`".to_owned()))
        }
        Err(why) => Err((format!("{text:?}: {why}"), "Write a name such as api.example.com".to_owned())),
    }
}

/// Whether a part of a name has Latin letters together with Greek, Cyrillic, Armenian or Cherokee ones. In a request such a name
/// is just another name; in a policy it is an accident, or an attack on who reads it.
fn is_mixed(label: &str) -> bool {
    let latin = label.chars().any(|c| c.is_ascii_alphabetic());
    let alike = |c: char| matches!(u32::from(c), 0x370..=0x52f | 0x531..=0x58f | 0x13a0..=0x13ff | 0x1c80..=0x1c8f | 0x1f00..=0x1fff | 0x2de0..=0x2dff | 0xa640..=0xa69f | 0xab70..=0xabbf);
    latin && label.chars().any(alike)
}
