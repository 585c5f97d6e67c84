//! Looking for many texts in a stream at the speed of memory, and holding back nothing that cannot be one of them.
//!
//! What is looked for is found by *anchors*, its first few bytes in each of the ways in which they may be written. One vectorised
//! search finds anchors; only there is the whole compared. Anchors are all that the search itself keeps of a secret.

use aho_corasick::{AhoCorasick, MatchKind, packed};
use bytes::Bytes;
use zeroize::Zeroizing;

use super::Misuse;

/// What stands at a place where an anchor was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// Not it.
    No,
    /// It may be, if the stream goes on as it should.
    More,
    /// It, so many bytes long.
    Found(usize),
}

/// What is looked for.
pub(super) trait Needles {
    /// Where to look closer.
    fn anchors(&self) -> &Anchors;
    /// Whether what `owner` stands for begins at the start of `text`. With `more`, the stream may go on behind it.
    fn check(&self, owner: u32, text: &[u8], more: bool) -> Check;
}

enum Search {
    Packed(packed::Searcher),
    Automaton(AhoCorasick),
    /// None could be made: each place is looked at.
    Everywhere,
}

impl Search {
    fn next(&self, text: &[u8], from: usize) -> Option<usize> {
        match self {
            Search::Packed(searcher) => {
                searcher.find_in(text, aho_corasick::Span { start: from, end: text.len() }).map(|found| found.start())
            }
            Search::Automaton(automaton) => {
                automaton.find(aho_corasick::Input::new(text).range(from..)).map(|found| found.start())
            }
            Search::Everywhere => (from < text.len()).then_some(from),
        }
    }
}

/// The beginnings of what is looked for, each with its owner.
pub(super) struct Anchors {
    /// In the order of their first bytes.
    all: Vec<(Zeroizing<Vec<u8>>, u32)>,
    /// Where those with a first byte begin in `all`, and where they end.
    ranges: Box<[(u32, u32); 256]>,
    searches: Vec<Search>,
    longest: usize,
}

impl std::fmt::Debug for Anchors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Anchors({})", self.all.len())
    }
}

impl Default for Anchors {
    fn default() -> Anchors {
        Anchors { all: Vec::new(), ranges: Box::new([(0, 0); 256]), searches: Vec::new(), longest: 0 }
    }
}

/// More than this in one vectorised search makes its buckets so full that it stumbles all the time.
const IN_ONE_SEARCH: usize = 48;
/// At most so many searches; beyond that each takes more, by an automaton.
const SEARCHES: usize = 16;

impl Anchors {
    pub(super) fn new(mut all: Vec<(Vec<u8>, u32)>) -> Anchors {
        all.sort();
        all.dedup();
        let mut ranges = Box::new([(0, 0); 256]);
        for (at, (text, _)) in all.iter().enumerate() {
            let at = u32::try_from(at).unwrap_or(u32::MAX);
            let range = &mut ranges[usize::from(text[0])];
            if range.1 == 0 {
                range.0 = at;
            }
            range.1 = at + 1;
        }
        // An anchor that begins with another is found with it.
        let mut distinct: Vec<&[u8]> = Vec::new();
        for (text, _) in &all {
            if !distinct.last().is_some_and(|shorter| text.starts_with(shorter)) {
                distinct.push(text);
            }
        }
        let searches = distinct
            .chunks(IN_ONE_SEARCH.max(distinct.len().div_ceil(SEARCHES)))
            .map(|texts| match packed::Searcher::new(texts) {
                Some(searcher) => Search::Packed(searcher),
                // Of overlapping anchors the one that begins first must be found, as the vectorised search does.
                None => AhoCorasick::builder()
                    .match_kind(MatchKind::LeftmostFirst)
                    .build(texts)
                    .map_or(Search::Everywhere, Search::Automaton),
            })
            .collect();
        let longest = all.iter().map(|(text, _)| text.len()).max().unwrap_or_default();
        Anchors {
            all: all.into_iter().map(|(text, owner)| (Zeroizing::new(text), owner)).collect(),
            ranges,
            searches,
            longest,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All of them, to be joined with others.
    pub(super) fn list(&self) -> Vec<(Vec<u8>, u32)> {
        self.all.iter().map(|(text, owner)| (text.to_vec(), *owner)).collect()
    }

    fn beginning_with(&self, byte: u8) -> &[(Zeroizing<Vec<u8>>, u32)] {
        let (from, to) = self.ranges[usize::from(byte)];
        &self.all[from as usize..to as usize]
    }

    /// All finds in a text that is whole, in its order: owner, where, how long.
    pub(super) fn finds(needles: &impl Needles, text: &[u8]) -> Vec<(u32, usize, usize)> {
        let mut all = Vec::new();
        let mut walk = Walk::new(needles.anchors(), text);
        let mut from = 0;
        while let Some(at) = walk.next(from) {
            from = match Anchors::look(needles, &text[at..], false) {
                Some((owner, Check::Found(length))) => {
                    all.push((owner, at, length));
                    at + length
                }
                _ => at + 1,
            };
        }
        all
    }

    /// What stands at the start of `text`: the longest that is found, or whether more is needed to tell.
    fn look(needles: &impl Needles, text: &[u8], more: bool) -> Option<(u32, Check)> {
        let mut best: Option<(u32, usize)> = None;
        for (anchor, owner) in needles.anchors().beginning_with(text[0]) {
            if !text.starts_with(anchor) {
                if more && anchor.starts_with(text) {
                    return Some((*owner, Check::More));
                }
                continue;
            }
            match needles.check(*owner, text, more) {
                Check::No => {}
                Check::More => return Some((*owner, Check::More)),
                Check::Found(length) => {
                    if best.is_none_or(|(_, longest)| length > longest) {
                        best = Some((*owner, length));
                    }
                }
            }
        }
        best.map(|(owner, length)| (owner, Check::Found(length)))
    }
}

/// Goes from anchor to anchor. Each search remembers where it found its next.
struct Walk<'a> {
    anchors: &'a Anchors,
    next: [Option<usize>; SEARCHES],
    text: &'a [u8],
}

impl<'a> Walk<'a> {
    fn new(anchors: &'a Anchors, text: &'a [u8]) -> Walk<'a> {
        let mut next = [None; SEARCHES];
        for (search, next) in anchors.searches.iter().zip(&mut next) {
            *next = search.next(text, 0);
        }
        Walk { anchors, next, text }
    }

    fn next(&mut self, from: usize) -> Option<usize> {
        let mut least = None;
        for (search, next) in self.anchors.searches.iter().zip(&mut self.next) {
            if next.is_some_and(|at| at < from) {
                *next = search.next(self.text, from);
            }
            least = match (least, *next) {
                (Some(a), Some(b)) => Some(usize::min(a, b)),
                (a, b) => a.or(b),
            };
        }
        least
    }
}

/// Is asked what to put in the place of a find of this owner; it appends that.
type Found<'a> = dyn FnMut(u32, &[u8], &mut Vec<u8>) -> Result<(), Misuse> + 'a;

/// A stream that is searched. Holds what may be the beginning of something.
#[derive(Debug, Default)]
pub(super) struct Stream {
    held: Zeroizing<Vec<u8>>,
}

impl Stream {
    /// Takes what came and gives what may go on.
    pub(super) fn push(
        &mut self,
        input: Bytes,
        ended: bool,
        needles: &impl Needles,
        found: &mut Found<'_>,
    ) -> Result<Bytes, Misuse> {
        if self.held.is_empty() {
            return self.search(input, ended, needles, found);
        }
        let mut whole = Vec::with_capacity(self.held.len() + input.len());
        whole.extend_from_slice(&self.held);
        whole.extend_from_slice(&input);
        self.held = Zeroizing::default();
        self.search(whole.into(), ended, needles, found)
    }

    fn search(
        &mut self,
        text: Bytes,
        ended: bool,
        needles: &impl Needles,
        found: &mut Found<'_>,
    ) -> Result<Bytes, Misuse> {
        let mut out: Option<Vec<u8>> = None;
        let (mut from, mut copied) = (0, 0);
        let mut walk = Walk::new(needles.anchors(), &text);
        let mut hold = text.len();
        while let Some(at) = walk.next(from) {
            match Anchors::look(needles, &text[at..], !ended) {
                None | Some((_, Check::No)) => from = at + 1,
                Some((_, Check::More)) => {
                    hold = at;
                    break;
                }
                Some((owner, Check::Found(length))) => {
                    let out = out.get_or_insert_with(|| Vec::with_capacity(text.len() + 64));
                    out.extend_from_slice(&text[copied..at]);
                    found(owner, &text[at..at + length], out)?;
                    from = at + length;
                    copied = from;
                }
            }
        }
        if !ended && hold == text.len() {
            let tail = usize::max(from, (text.len() + 1).saturating_sub(needles.anchors().longest));
            hold = (tail..text.len())
                .find(|at| {
                    let rest = &text[*at..];
                    needles.anchors().beginning_with(rest[0]).iter().any(|(anchor, _)| anchor.starts_with(rest))
                })
                .unwrap_or(text.len());
        }
        self.held.extend_from_slice(&text[hold..]);
        Ok(match out {
            None => text.slice(..hold),
            Some(mut out) => {
                out.extend_from_slice(&text[copied..hold]);
                out.into()
            }
        })
    }
}
