//! The query of a request: plain and bracketed keys, repeated keys, empty values as absent.

use std::str::FromStr;

use palisade_api::Timestamp;
use percent_encoding::percent_decode_str;

use crate::error::{Answer, Fault};

/// A decoded query.
#[derive(Debug, Default)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

/// A range of creation times; `from` is inclusive, `before` is exclusive.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Range {
    pub(crate) from: Option<Timestamp>,
    pub(crate) before: Option<Timestamp>,
}

fn decode(text: &str) -> Answer<String> {
    let spaced = text.replace('+', " ");
    match percent_decode_str(&spaced).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(Fault::invalid("the query is not percent-encoded UTF-8")),
    }
}

impl Query {
    /// Reads the query of a URI.
    pub(crate) fn parse(raw: Option<&str>) -> Answer<Query> {
        let mut pairs = Vec::new();
        for part in raw.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            pairs.push((decode(key)?, decode(value)?));
        }
        Ok(Query { pairs })
    }

    /// The value of a parameter that may be given once.
    pub(crate) fn one(&self, name: &str) -> Answer<Option<&str>> {
        let mut values = self.pairs.iter().filter(|(key, value)| key == name && !value.is_empty());
        let first = values.next().map(|(_, value)| value.as_str());
        if values.next().is_some() {
            return Err(Fault::field(name, "may be given only once"));
        }
        Ok(first)
    }

    /// All values of an array, whether its key has brackets or not.
    pub(crate) fn many(&self, name: &str) -> Vec<&str> {
        let named = |key: &str| key == name || key.strip_suffix("[]") == Some(name);
        let values = self.pairs.iter().filter(|(key, value)| named(key) && !value.is_empty());
        values.map(|(_, value)| value.as_str()).collect()
    }

    fn parsed<T: FromStr>(&self, name: &str, expected: &str) -> Answer<Option<T>> {
        match self.one(name)? {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(Fault::field(name, expected)),
            },
        }
    }

    /// `true` or `false`.
    pub(crate) fn flag(&self, name: &str) -> Answer<bool> {
        Ok(self.parsed(name, "must be true or false")?.unwrap_or(false))
    }

    /// A whole number within a range.
    pub(crate) fn number(&self, name: &str, least: i64, most: i64) -> Answer<Option<i64>> {
        let expected = if most == i64::MAX {
            format!("must be a whole number of at least {least}")
        } else {
            format!("must be a whole number from {least} to {most}")
        };
        match self.parsed::<i64>(name, &expected)? {
            Some(value) if value < least || value > most => Err(Fault::field(name, expected)),
            other => Ok(other),
        }
    }

    /// `limit`, at most `most`.
    pub(crate) fn limit(&self, default: usize, most: usize) -> Answer<usize> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let given = self.number("limit", 1, most)?;
        Ok(given.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(default))
    }

    fn time(&self, name: &str) -> Answer<Option<Timestamp>> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        // An unencoded plus sign of an offset has become a space.
        match text.replace(' ', "+").parse() {
            Ok(time) => Ok(Some(time)),
            Err(why) => Err(Fault::field(name, why)),
        }
    }

    /// `created_at[gt|gte|lt|lte]`.
    pub(crate) fn created(&self) -> Answer<Range> {
        let gte = self.time("created_at[gte]")?;
        let gt = self.time("created_at[gt]")?.map(|at| at.plus(1));
        let lt = self.time("created_at[lt]")?;
        let lte = self.time("created_at[lte]")?.map(|at| at.plus(1));
        let before = match (lt, lte) {
            (Some(lt), Some(lte)) => Some(lt.min(lte)),
            (lt, lte) => lt.or(lte),
        };
        Ok(Range { from: gte.max(gt), before })
    }
}
