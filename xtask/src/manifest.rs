//! The lines of a `Cargo.toml`, as far as the checks need them: sections, keys and values with their places.

/// One `key = value` of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The table, without brackets; empty before the first.
    pub(crate) section: String,
    /// The key as written, dots included.
    pub(crate) key: String,
    /// The value as written, on one line.
    pub(crate) value: String,
    /// The line of the key, from one.
    pub(crate) line: usize,
}

impl Entry {
    /// When the entry belongs to a table of dependencies: the dependency's name and the key inside it, if any.
    pub(crate) fn dependency(&self) -> Option<(&str, &str)> {
        let tables = ["dependencies", "dev-dependencies", "build-dependencies"];
        if self.section.starts_with("workspace.") {
            return None;
        }
        let (parent, last) = self.section.rsplit_once('.').unwrap_or(("", &self.section));
        if tables.contains(&last) {
            return Some(self.key.split_once('.').unwrap_or((&self.key, "")));
        }
        let table = parent.rsplit_once('.').map_or(parent, |(_, table)| table);
        tables.contains(&table).then_some((last, &self.key))
    }
}

/// Reads the entries of a manifest. Values that span lines are joined.
pub(crate) fn entries(text: &str) -> Vec<Entry> {
    let mut section = String::new();
    let mut entries: Vec<Entry> = Vec::new();
    let mut open = 0;
    for (number, raw) in text.lines().enumerate() {
        let (line, depth) = without_comment(raw);
        let line = line.trim();
        if open > 0 {
            if let Some(entry) = entries.last_mut() {
                entry.value.push(' ');
                entry.value.push_str(line);
            }
            open += depth;
        } else if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).trim().to_owned();
        } else if let Some((key, value)) = line.split_once('=') {
            let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
            entries.push(Entry { section: section.clone(), key, value, line: number + 1 });
            open = depth;
        }
    }
    entries
}

/// The line up to its comment, and how many brackets it leaves open.
fn without_comment(line: &str) -> (&str, i32) {
    let (mut depth, mut quoted) = (0, None);
    for (at, letter) in line.char_indices() {
        match (letter, quoted) {
            ('"' | '\'', None) => quoted = Some(letter),
            (_, Some(quote)) if letter == quote => quoted = None,
            (_, Some(_)) => {}
            ('#', None) => return (&line[..at], depth),
            ('[' | '{', None) => depth += 1,
            (']' | '}', None) => depth -= 1,
            _ => {}
        }
    }
    (line, depth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_sections_and_lines() {
        let text = "[package] # x\nname = \"a # b\"\n\n[dependencies]\nb.workspace = true\nc = { version = \"1\", \
                    features = [\n  \"x\",\n] }\n[target.'cfg(unix)'.dev-dependencies.d]\nversion = \"2\"\n";
        let entries = entries(text);
        let lines: Vec<usize> = entries.iter().map(|it| it.line).collect();
        assert_eq!(lines, [2, 5, 6, 10]);
        assert_eq!(entries[0].value, "\"a # b\"");
        assert_eq!(entries[0].dependency(), None);
        assert_eq!(entries[1].dependency(), Some(("b", "workspace")));
        assert_eq!(entries[2].dependency(), Some(("c", "")));
        assert!(entries[2].value.ends_with("] }"), "{:?}", entries[2]);
        assert_eq!(entries[3].dependency(), Some(("d", "version")));
    }
}
