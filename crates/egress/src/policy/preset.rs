//! Rules that many need, by name.

/// Lists of rules under one name. Each allows to read and nothing else: a registry that can be written to leads out.
pub(super) struct Preset {
    pub(super) name: &'static str,
    /// Reached by TLS.
    pub(super) hosts: &'static [&'static str],
    /// Whether plain HTTP is allowed too: for those whose packages are signed and whose clients use it.
    pub(super) plain: bool,
    /// Paths that may be posted to, for reading.
    pub(super) posts: &'static [&'static str],
}

const fn tls(name: &'static str, hosts: &'static [&'static str]) -> Preset {
    Preset { name, hosts, plain: false, posts: &[] }
}

const fn plain(name: &'static str, hosts: &'static [&'static str]) -> Preset {
    Preset { name, hosts, plain: true, posts: &[] }
}

/// All of them, in the order of the alphabet.
pub(super) const PRESETS: &[Preset] = &[
    plain("alpine", &["dl-cdn.alpinelinux.org"]),
    tls("conda", &["conda.anaconda.org", "repo.anaconda.com"]),
    tls("crates", &["crates.io", "index.crates.io", "static.crates.io"]),
    plain("debian", &["deb.debian.org", "security.debian.org"]),
    Preset {
        name: "github",
        hosts: &[
            "github.com",
            "codeload.github.com",
            "objects.githubusercontent.com",
            "raw.githubusercontent.com",
            "release-assets.githubusercontent.com",
        ],
        plain: false,
        // What a clone or fetch asks for.
        posts: &["/*/*/git-upload-pack"],
    },
    Preset { name: "gitlab", hosts: &["gitlab.com"], plain: false, posts: &["/**/git-upload-pack"] },
    tls("go", &["proxy.golang.org", "sum.golang.org"]),
    tls(
        "gradle",
        &["services.gradle.org", "downloads.gradle.org", "plugins.gradle.org", "plugins-artifacts.gradle.org"],
    ),
    tls("hex", &["hex.pm", "repo.hex.pm", "builds.hex.pm"]),
    tls("maven", &["repo.maven.apache.org", "repo1.maven.org"]),
    Preset {
        name: "npm",
        hosts: &["registry.npmjs.org", "registry.yarnpkg.com"],
        plain: false,
        posts: &["/-/npm/v1/security/advisories/bulk", "/-/npm/v1/security/audits/quick"],
    },
    tls("nuget", &["api.nuget.org", "www.nuget.org"]),
    tls("packagist", &["packagist.org", "repo.packagist.org"]),
    tls("pypi", &["pypi.org", "files.pythonhosted.org"]),
    tls("rubygems", &["rubygems.org", "index.rubygems.org"]),
    tls("rustup", &["static.rust-lang.org"]),
    plain("ubuntu", &["archive.ubuntu.com", "security.ubuntu.com", "ports.ubuntu.com"]),
];

/// What the preset `package-managers` stands for: those of the API's environments (apt, cargo, gem, go, npm, pip).
pub(super) const PACKAGE_MANAGERS: &[&str] = &["crates", "debian", "go", "npm", "pypi", "rubygems", "ubuntu"];
