//! What registries ask for before they answer: the `WWW-Authenticate` header, and the answers of token services.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use palisade_api::Secret;
use serde::Deserialize;
use zeroize::Zeroizing;

/// A way to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Bearer { realm: String, service: Option<String> },
    Basic,
}

/// The best of what is offered.
pub(crate) fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let all: Vec<Challenge> = headers.flat_map(parse).collect();
    all.iter().find(|it| matches!(it, Challenge::Bearer { .. })).or_else(|| all.first()).cloned()
}

/// The challenges of one header that are understood (RFC 9110, section 11.6.1).
fn parse(header: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',', '\t']);
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',', '\t']).unwrap_or(rest.len());
        let word = rest[..end].to_ascii_lowercase();
        let after = &rest[end..];
        if let Some(value) = after.strip_prefix('=') {
            let Some((value, after)) = value_of(value) else { return Vec::new() };
            let Some((_, parameters)) = found.last_mut() else { return Vec::new() };
            parameters.push((word, value));
            rest = after;
        } else {
            found.push((word, Vec::new()));
            rest = after;
        }
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    let read = |(scheme, parameters): (String, Vec<(String, String)>)| {
        let parameter =
            |wanted: &str| parameters.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
        match scheme.as_str() {
            "bearer" => Some(Challenge::Bearer { realm: parameter("realm")?, service: parameter("service") }),
            "basic" => Some(Challenge::Basic),
            _ => None,
        }
    };
    found.into_iter().filter_map(read).collect()
}

/// A token or a quoted text, and what comes after it.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// The header of a user and a password.
pub(crate) fn basic(user: &str, password: &Secret) -> Secret {
    let pair = Zeroizing::new(format!("{user}:{}", password.expose()));
    Secret::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
}

/// The token in a token service's answer.
pub(crate) fn token(bytes: &[u8]) -> Option<Secret> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<Secret>,
        access_token: Option<Secret>,
    }
    let answer: Answer = serde_json::from_slice(bytes).ok()?;
    let token = answer.token.or(answer.access_token)?;
    let plain = !token.expose().is_empty() && token.expose().bytes().all(|byte| byte.is_ascii_graphic());
    plain.then_some(token)
}

/// Whether two hosts are of one domain: the same, or all but the first name of one of them in common, and that no
/// top-level domain.
pub(crate) fn is_near(registry: &str, service: &str) -> bool {
    if registry == service {
        return true;
    }
    let address = |host: &str| host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok();
    if address(registry) || address(service) {
        return false;
    }
    let parent = |host: &str| host.split_once('.').map(|(_, parent)| parent.to_owned()).filter(|it| it.contains('.'));
    let below = |host: &str, domain: &str| host == domain || host.ends_with(&format!(".{domain}"));
    let registry_domain = parent(registry).unwrap_or_else(|| registry.to_owned());
    below(service, &registry_domain) && registry_domain.contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.map(Into::into) })
        };
        let header = |text: &str| choose([text].into_iter());
        assert_eq!(
            header("Bearer realm=\"https://a.example/token\",service=\"s\",scope=\"repository:x:pull,push\""),
            bearer("https://a.example/token", Some("s"))
        );
        assert_eq!(header("Basic realm=\"x\", bearer realm=https://b.example"), bearer("https://b.example", None));
        assert_eq!(header("BASIC realm=\"a \\\"b\\\"\""), Some(Challenge::Basic));
        for nonsense in
            ["", ",,,", "Bearer", "realm=\"x\"", "Bearer realm=\"unterminated", "Digest realm=\"x\"", "=", "\""]
        {
            assert_eq!(header(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn passwords_stay_in_their_domain() {
        assert!(is_near("ghcr.io", "ghcr.io"));
        assert!(is_near("registry-1.docker.io", "auth.docker.io"));
        assert!(is_near("registry.gitlab.com", "gitlab.com"));
        assert!(is_near("registry.corp.example", "login.corp.example"));
        assert!(is_near("quay.io", "auth.quay.io"));
        for (registry, service) in [
            ("ghcr.io", "evil.example"),
            ("ghcr.io", "evil.io"),
            ("ghcr.io", "notghcr.io"),
            ("registry.gitlab.com", "evil.com"),
            ("127.0.0.1", "10.0.0.1"),
            ("127.0.0.1", "1.127.0.0.1.evil.example"),
            ("localhost", "evil.localhost"),
        ] {
            assert!(!is_near(registry, service), "{registry} {service}");
        }
    }

    #[test]
    fn tokens_are_read_and_nothing_else() {
        assert_eq!(token(br#"{"token":"t"}"#).unwrap().expose(), "t");
        assert_eq!(token(br#"{"access_token":"t"}"#).unwrap().expose(), "t");
        for bad in [&b"{}"[..], br#"{"token":"a b"}"#, br#"{"token":""}"#, b"x"] {
            assert!(token(bad).is_none());
        }
    }
}
