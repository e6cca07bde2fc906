//! What a source file names: every path in its `use` items and in its code, whichever way it is written.
//!
//! Not a parser of the language: comments and texts are blanked, and what is left is read word by word.

/// A path that a file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The line of its last part.
    pub line: usize,
    /// Its parts. One that began with `crate`, `self` or `super` begins with `crate` and says the rest in full.
    pub path: Vec<String>,
}

/// The text with comments and the insides of literals blanked; lines stay where they are.
pub fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    let keep = |c: char| if c == '\n' { '\n' } else { ' ' };
    while i < chars.len() {
        let word_before = i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_');
        let end = match at(i) {
            '/' if at(i + 1) == '/' => (i..).find(|&n| n >= chars.len() || at(n) == '\n'),
            '/' if at(i + 1) == '*' => Some(end_of_block(&chars, i)),
            '"' => Some(end_of_text(&chars, i)),
            '\'' if at(i + 1) == '\\' => {
                (i + 3..).find(|&n| n >= chars.len() || at(n) == '\'').map(|n| n + 1)
            }
            '\'' if at(i + 2) == '\'' => Some(i + 3),
            'r' | 'b' | 'c' if !word_before => end_of_raw(&chars, i),
            _ => None,
        };
        match end {
            Some(end) => {
                let end = end.min(chars.len());
                out.extend(chars[i..end].iter().map(|&c| keep(c)));
                i = end;
            }
            None => {
                out.push(at(i));
                i += 1;
            }
        }
    }
    out
}

fn end_of_block(chars: &[char], from: usize) -> usize {
    let (mut depth, mut i) = (0, from);
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                i += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                i += 2;
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    i
}

fn end_of_text(chars: &[char], from: usize) -> usize {
    let mut i = from + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// The end of `r"…"`, `r#"…"#` and the same of bytes and C strings; none for a word that merely begins so.
fn end_of_raw(chars: &[char], from: usize) -> Option<usize> {
    let mut i = from;
    if matches!(chars[i], 'b' | 'c') && chars.get(i + 1) == Some(&'r') {
        i += 1;
    }
    if chars[i] != 'r' {
        return None;
    }
    let hashes = chars[i + 1..].iter().take_while(|&&c| c == '#').count();
    if chars.get(i + 1 + hashes) != Some(&'"') {
        return None;
    }
    let closed = |n: usize| {
        chars[n] == '"' && chars[n + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes
    };
    (i + 2 + hashes..chars.len()).find(|&n| closed(n)).map(|n| n + 1 + hashes)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Name(String),
    /// `::`
    Sep,
    Mark(char),
}

fn words(text: &str) -> Vec<(usize, Word)> {
    let mut found = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = if first.is_alphanumeric() || first == '_' {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                found.push((n + 1, Word::Name(rest[..end].to_owned())));
                end
            } else if rest.starts_with("::") {
                found.push((n + 1, Word::Sep));
                2
            } else {
                found.push((n + 1, Word::Mark(first)));
                first.len_utf8()
            };
            rest = rest[length..].trim_start();
        }
    }
    found
}

/// The words of a file, without comments and literals, with their lines.
pub fn names(text: &str) -> Vec<(usize, String)> {
    let name = |(line, word)| match word {
        Word::Name(name) => Some((line, name)),
        _ => None,
    };
    words(&blank(text)).into_iter().filter_map(name).collect()
}

/// The module that a file is, from its place below `src`.
pub fn module_of(file: &str) -> Vec<String> {
    let inner = file.split_once("src/").map_or(file, |(_, inner)| inner);
    let mut module: Vec<String> = inner.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        module.pop();
    }
    module
}

struct Scan {
    words: Vec<(usize, Word)>,
    at: usize,
    /// The module of the file, and the modules in it that are open, each with its depth of braces.
    file: Vec<String>,
    inner: Vec<(usize, String)>,
    depth: usize,
    found: Vec<Named>,
}

/// Every path that a file names, in its order.
pub fn paths(file: &str, text: &str) -> Vec<Named> {
    let words = words(&blank(text));
    let file = module_of(file);
    let mut scan = Scan { words, at: 0, file, inner: Vec::new(), depth: 0, found: Vec::new() };
    scan.run();
    scan.found
}

impl Scan {
    fn word(&self, ahead: usize) -> Option<&Word> {
        self.words.get(self.at + ahead).map(|(_, word)| word)
    }

    fn name(&self, ahead: usize) -> Option<&str> {
        match self.word(ahead) {
            Some(Word::Name(name)) => Some(name),
            _ => None,
        }
    }

    fn is(&self, ahead: usize, mark: char) -> bool {
        self.word(ahead) == Some(&Word::Mark(mark))
    }

    fn run(&mut self) {
        while let Some(word) = self.word(0) {
            match word {
                Word::Mark('{') => self.depth += 1,
                Word::Mark('}') => {
                    self.depth = self.depth.saturating_sub(1);
                    self.inner.retain(|(depth, _)| *depth <= self.depth);
                }
                Word::Name(name) if name == "use" && !self.is(1, '<') => {
                    self.at += 1;
                    self.tree(&[]);
                    continue;
                }
                Word::Name(name) if name == "mod" && self.is(2, '{') => {
                    let name = self.name(1).unwrap_or_default().to_owned();
                    self.inner.push((self.depth + 1, name));
                    self.at += 1;
                }
                Word::Name(_) => {
                    self.code();
                    continue;
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    /// A path in code; a single word names nothing outside the file.
    fn code(&mut self) {
        let mut path = Vec::new();
        while let Some(name) = self.name(0) {
            path.push(name.to_owned());
            self.at += 1;
            if self.word(0) != Some(&Word::Sep) || self.name(1).is_none() {
                break;
            }
            self.at += 1;
        }
        if path.len() > 1 {
            self.say(path);
        }
    }

    /// What stands in a `use` item, up to its end or to the next of its group.
    fn tree(&mut self, before: &[String]) {
        let mut path = before.to_vec();
        loop {
            match self.word(0).cloned() {
                Some(Word::Sep) => self.at += 1,
                Some(Word::Name(name)) => {
                    self.at += 1;
                    if name != "self" || path.is_empty() {
                        path.push(name);
                    }
                    if self.word(0) == Some(&Word::Sep) {
                        continue;
                    }
                    if self.name(0) == Some("as") {
                        self.at += 2;
                    }
                    return self.say(path);
                }
                Some(Word::Mark('*')) => {
                    self.at += 1;
                    path.push("*".into());
                    return self.say(path);
                }
                Some(Word::Mark('{')) => {
                    self.at += 1;
                    while self.word(0).is_some() && !self.is(0, '}') {
                        let from = self.at;
                        self.tree(&path);
                        if self.is(0, ',') || self.at == from {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                _ => return,
            }
        }
    }

    fn say(&mut self, path: Vec<String>) {
        let line = self.words[self.at - 1].0;
        let mut module: Vec<String> =
            self.file.iter().chain(self.inner.iter().map(|(_, name)| name)).cloned().collect();
        let mut rest = path.as_slice();
        let path = match rest.first().map(String::as_str) {
            Some("crate") => path,
            Some("self" | "super") => {
                while let Some(first) = rest.first().filter(|first| *first == "self" || *first == "super") {
                    if first == "super" {
                        module.pop();
                    }
                    rest = &rest[1..];
                }
                let crate_ = std::iter::once("crate".to_owned());
                crate_.chain(module).chain(rest.iter().cloned()).collect()
            }
            _ => path,
        };
        self.found.push(Named { line, path });
    }
}

mod tests {
    use super::*;

    fn all(file: &str, text: &str) -> Vec<String> {
        paths(file, text).into_iter().map(|it| format!("{} {}", it.line, it.path.join("::"))).collect()
    }

    #[test]
    fn a_use_item_is_read_up_to_its_end_with_all_that_is_nested_in_it() {
        let text = "use crate::{\n    base::{At, ids::{self, Name as N}},\n    host::X,\n};\npub use a::b::*;\nuse ::c::d;";
        let found = all("src/machine/x.rs", text);
        let expected = [
            "2 crate::base::At",
            "2 crate::base::ids",
            "2 crate::base::ids::Name",
            "3 crate::host::X",
            "5 a::b::*",
            "6 c::d",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn paths_in_code_are_found_and_texts_and_comments_are_not() {
        let text = "fn f() { crate::host::go(rusqlite::Error::x); } // crate::cli::a\n\
                    /* b::c /* d::e */ */ let a = \"f::g\"; let b = r#\"h::\"i\"#; let c = '\"'; let d: &'a x::Y = 'z';\n\
                    let e = b\"j::k\\\"l::m\"; o.collect::<p::Q>();";
        let found = all("src/machine/x.rs", text);
        assert_eq!(found, ["1 crate::host::go", "1 rusqlite::Error::x", "2 x::Y", "3 p::Q"]);
    }

    #[test]
    fn relative_paths_are_told_in_full_also_inside_a_module_of_a_file() {
        let text = "use super::super::host::X;\nmod tests {\n use super::Y;\n fn f() { self::g::h(); }\n}\nuse super::Z;";
        let found = all("src/machine/wake.rs", text);
        let expected = [
            "1 crate::host::X",
            "3 crate::machine::wake::Y",
            "4 crate::machine::wake::tests::g::h",
            "6 crate::machine::Z",
        ];
        assert_eq!(found, expected);
        assert_eq!(all("src/machine/mod.rs", "use super::host::X;"), ["1 crate::host::X"]);
        assert_eq!(module_of("runner/src/provider/mod.rs"), ["provider"]);
    }
}
