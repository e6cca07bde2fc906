//! What the lines of `codex app-server` mean, and what is said to it: JSON-RPC without its version.
//!
//! First `initialize`, then the thread is started or resumed, and only then pushes are said, each as a `turn/start`:
//! while a turn runs it steers that turn. A turn that is completed covers every push whose user message it took up.
//!
//! codex takes the same message twice. So a resumed thread is asked for the items of its newest turn first, and a push
//! whose message is among them is not said again; one notice asks for its reply instead.
//!
//! Invariant: no line makes it fail. Unknown methods, keys of another type and broken JSON are signs of life.
//! Invariant: no error's words hold text of a message.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lamplighter::base::Ms;
use lamplighter::session::rows::MAX_QUESTION_WAIT;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::config::OWN_SERVER;
use crate::provider::child::{Dialect, Effect, Exit, question_time, with_a_sign_of_life, words};
use crate::provider::{Answer, ErrorClass, McpServer, ProviderEvent, Push, TurnError};

/// Most tools in flight that are kept track of. An agent runs a handful; more are merely not told of.
const MAX_TOOLS: usize = 256;
/// How many items of a resumed thread one request asks for, newest first.
const PAGE_ITEMS: u64 = 200;
/// So many pages are asked for at most, while the newest turn goes on; messages further back in a longer one are said
/// again.
const MAX_PAGES: u32 = 50;
/// How long a tool of a server may take: as long as NanoClaw's host waits without a sign of life (contract 15).
const TOOL_TIMEOUT: Ms = Ms::minutes(30);
/// What a call of our tools may take beyond the longest question: they end by themselves before.
const CALL_SLACK: Ms = Ms::minutes(1);

/// The code of a request that codex has no room for at the moment.
const OVERLOADED: i64 = -32001;

/// What a thread is opened with.
#[derive(Clone, Debug, Default)]
pub struct Thread {
    /// Its id; `None` for a new one.
    pub id: Option<Uuid>,
    /// Where the agent works.
    pub folder: String,
    /// What it is told about itself.
    pub instructions: String,
    /// Its model, if one is named.
    pub model: Option<String>,
    /// Its effort, if one is named.
    pub effort: Option<String>,
    /// Its tools.
    pub servers: Vec<McpServer>,
}

/// What a request was about.
#[derive(Clone, Debug)]
enum Asked {
    Initialize,
    Thread,
    /// A page of the thread's newest items; so many pages came before.
    Known(u32),
    /// The `turn/start` of the push with this uuid.
    Turn(String),
}

#[derive(Clone, Debug)]
struct Pushed {
    push: Push,
    /// What codex knows its message by: at first the push's own, then that of the notice.
    uuid: String,
    /// Whether codex has been told.
    said: bool,
    /// The turn that codex meant to take it up in.
    turn: Option<String>,
    started: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Wire {
    thread: Thread,
    /// The thread's id, once codex has opened it and its items are known.
    ready: Option<Uuid>,
    /// Makes the uuids of notices unlike any other's.
    nonce: Uuid,
    requests: u64,
    asked: BTreeMap<u64, Asked>,
    /// The user messages that the thread had before.
    known: BTreeSet<String>,
    /// The thread's newest turn when it was resumed.
    newest: Option<String>,
    pushes: VecDeque<Pushed>,
    /// The tools in flight, each with the longest that it may take by its own declaration.
    tools: BTreeMap<String, Option<Ms>>,
    turn: Option<String>,
    /// What the agent said last in the running turn.
    text: Option<String>,
    /// When the service was first missed without a sign of it since, in seconds since the epoch.
    missed: Option<i64>,
    /// When a used-up limit opens again, in seconds since the epoch.
    resets_at: Option<i64>,
    patience: Ms,
    /// Seconds since the epoch.
    clock: fn() -> i64,
    over: bool,
}

impl Wire {
    /// The conversation in `thread`; `nonce` is random. The service may be missed for `patience`.
    pub fn new(thread: Thread, nonce: Uuid, patience: Ms, clock: fn() -> i64) -> Self {
        Self {
            thread,
            ready: None,
            nonce,
            requests: 0,
            asked: BTreeMap::new(),
            known: BTreeSet::new(),
            newest: None,
            pushes: VecDeque::new(),
            tools: BTreeMap::new(),
            turn: None,
            text: None,
            missed: None,
            resets_at: None,
            patience,
            clock,
            over: false,
        }
    }

    fn request(&mut self, method: &str, params: Value, asked: Asked) -> Effect {
        self.requests += 1;
        self.asked.insert(self.requests, asked);
        Effect::Write(json!({"id": self.requests, "method": method, "params": params}))
    }

    fn open_thread(&mut self) -> Vec<Effect> {
        let thread = &self.thread;
        let mut params = Map::new();
        let mut put = |key: &str, value: Value| params.insert(key.to_owned(), value);
        put("cwd", thread.folder.clone().into());
        put("approvalPolicy", "never".into());
        put("sandbox", "danger-full-access".into());
        put("config", json!({"mcp_servers": servers(&thread.servers)}));
        if !thread.instructions.trim().is_empty() {
            put("developerInstructions", thread.instructions.clone().into());
        }
        if let Some(model) = &thread.model {
            put("model", model.clone().into());
        }
        let method = match thread.id {
            None => "thread/start",
            Some(id) => {
                put("threadId", id.to_string().into());
                put("excludeTurns", true.into());
                "thread/resume"
            }
        };
        let open = self.request(method, params.into(), Asked::Thread);
        vec![Effect::Write(json!({"method": "initialized"})), open]
    }

    fn on_line(&mut self, line: &Value) -> Vec<Effect> {
        match (text(line, "method"), line.get("id")) {
            (Some(_), Some(id)) => {
                let error = json!({"code": -32601, "message": "this host answers no requests"});
                vec![Effect::Write(json!({"id": id, "error": error}))]
            }
            (Some(method), None) => self.notified(method, &line["params"]),
            (None, Some(id)) => match id.as_u64().and_then(|id| self.asked.remove(&id)) {
                Some(asked) => self.answered(asked, line),
                None => Vec::new(),
            },
            (None, None) => Vec::new(),
        }
    }

    fn answered(&mut self, asked: Asked, line: &Value) -> Vec<Effect> {
        let error = line.get("error").filter(|error| !error.is_null());
        match (asked, error) {
            (Asked::Initialize, None) => self.open_thread(),
            (Asked::Thread, None) => self.opened(&line["result"]),
            (Asked::Known(pages), found) => {
                let page = if found.is_none() { &line["result"] } else { &Value::Null };
                self.listed(page, pages)
            }
            (Asked::Turn(uuid), None) => {
                let turn = text(&line["result"]["turn"], "id").map(str::to_owned);
                if let Some(push) = self.pushes.iter_mut().find(|push| push.uuid == uuid) {
                    push.turn = turn;
                }
                Vec::new()
            }
            (Asked::Turn(uuid), Some(error)) if is_unsteerable(error) => {
                // A compaction runs; what it does not take is said when it is over.
                let push = self.pushes.iter_mut().find(|push| push.uuid == uuid);
                if let Some(push) = push {
                    push.said = false;
                }
                Vec::new()
            }
            (asked, Some(error)) => self.refused(&asked, error),
        }
    }

    fn refused(&mut self, asked: &Asked, error: &Value) -> Vec<Effect> {
        let said = text(error, "message").unwrap_or("").to_lowercase();
        let is_unknown = ["no rollout found", "thread not found", "invalid session id", "invalid thread id"];
        if self.thread.id.is_some() && is_unknown.iter().any(|words| said.contains(words)) {
            let reason = "codex knows nothing of this conversation any more";
            return self.end(TurnError::new(ErrorClass::SessionInvalid, reason));
        }
        if said.contains("active writer") {
            let reason = "another codex process still has this conversation";
            return self.end(TurnError::new(ErrorClass::Transient, reason));
        }
        let what = match asked {
            Asked::Initialize => "the start",
            Asked::Thread | Asked::Known(_) => "the conversation",
            Asked::Turn(_) => "a message",
        };
        let code = error["code"].as_i64().unwrap_or(0);
        let class = if code == OVERLOADED { ErrorClass::Transient } else { ErrorClass::Permanent };
        self.end(TurnError::new(class, format!("codex refuses {what} (code {code})")))
    }

    fn opened(&mut self, result: &Value) -> Vec<Effect> {
        let Some(id) = text(&result["thread"], "id").and_then(|id| Uuid::try_parse(id).ok()) else {
            let reason = "codex opened a conversation without an id";
            return self.end(TurnError::new(ErrorClass::Permanent, reason));
        };
        let is_new = self.thread.id.is_none();
        self.thread.id = Some(id);
        let mut effects = vec![Effect::Tell(ProviderEvent::Init { continuation: id.to_string() })];
        if is_new {
            self.ready = Some(id);
            effects.extend(self.say());
        } else {
            effects.push(self.list(None, 0));
        }
        effects
    }

    /// Asks for a page of the thread's items, newest first; `pages` came before.
    fn list(&mut self, cursor: Option<&str>, pages: u32) -> Effect {
        let id = self.thread.id.map(|id| id.to_string());
        let mut params = json!({"threadId": id, "limit": PAGE_ITEMS, "sortDirection": "desc"});
        if let Some(cursor) = cursor {
            params["cursor"] = cursor.into();
        }
        self.request("thread/items/list", params, Asked::Known(pages))
    }

    /// Takes a page; the next one is needed when the newest turn began before it.
    fn listed(&mut self, page: &Value, pages: u32) -> Vec<Effect> {
        let entries = page["data"].as_array().map_or(&[][..], Vec::as_slice);
        self.known
            .extend(entries.iter().filter_map(|entry| text(&entry["item"], "clientId")).map(str::to_owned));
        let turn = |entry: Option<&Value>| entry.and_then(|entry| text(entry, "turnId")).map(str::to_owned);
        if pages == 0 {
            self.newest = turn(entries.first());
        }
        let goes_on = self.newest.is_some() && turn(entries.last()) == self.newest;
        match text(page, "nextCursor") {
            Some(cursor) if goes_on && pages + 1 < MAX_PAGES => vec![self.list(Some(cursor), pages + 1)],
            _ => {
                self.ready = self.thread.id;
                self.say()
            }
        }
    }

    /// Says what was not said.
    fn say(&mut self) -> Vec<Effect> {
        let Some(thread) = self.ready else { return Vec::new() };
        let mut lines = Vec::new();
        for push in self.pushes.iter_mut().filter(|push| !push.said) {
            push.said = true;
            let own = Uuid::new_v5(&thread, push.push.id.as_bytes()).to_string();
            let mut said = push.push.prompt.text.clone();
            push.uuid = own;
            if self.known.contains(&push.uuid) {
                // Its own uuid is in the thread already: the notice has one of its own, new in each process.
                push.uuid = Uuid::new_v5(&self.nonce, push.push.id.as_bytes()).to_string();
                said = words::ask_again(&words::names(&push.push));
            }
            lines.push((push.uuid.clone(), said));
        }
        let lines = lines.into_iter().map(|(uuid, said)| {
            let mut params = json!({
                "threadId": thread.to_string(),
                "clientUserMessageId": uuid,
                "input": [{"type": "text", "text": said}],
            });
            if let Some(effort) = &self.thread.effort {
                params["effort"] = effort.clone().into();
            }
            (uuid, params)
        });
        let lines: Vec<(String, Value)> = lines.collect();
        lines
            .into_iter()
            .map(|(uuid, params)| self.request("turn/start", params, Asked::Turn(uuid)))
            .collect()
    }

    fn notified(&mut self, method: &str, params: &Value) -> Vec<Effect> {
        // The agent's own agents have threads of their own, whose turns answer nobody here.
        let own = self.thread.id.map(|id| id.to_string());
        if text(params, "threadId").is_some_and(|thread| own.as_deref() != Some(thread)) {
            return Vec::new();
        }
        if method.starts_with("item/") {
            self.missed = None;
        }
        match method {
            "turn/started" => {
                self.turn = text(&params["turn"], "id").map(str::to_owned);
                self.text = None;
                Vec::new()
            }
            "item/started" | "item/completed" => self.item(&params["item"], method == "item/completed"),
            "turn/completed" => self.turn_completed(&params["turn"]),
            "error" if params["willRetry"] == true => self.retrying(&params["error"]),
            "account/rateLimits/updated" => {
                let limits = &params["rateLimits"];
                let used_up = ["primary", "secondary"].map(|name| &limits[name]);
                let used_up =
                    used_up.iter().filter(|w| w["usedPercent"].as_f64().is_some_and(|used| used >= 100.0));
                self.resets_at = used_up.filter_map(|window| window["resetsAt"].as_i64()).max();
                Vec::new()
            }
            "mcpServer/startupStatus/updated" => match (text(params, "name"), text(params, "status")) {
                (Some(name), Some(state @ ("failed" | "cancelled"))) => {
                    vec![progress(&format!("the tool server {:?} is {state}", words::plain(name)))]
                }
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    fn item(&mut self, item: &Value, is_completed: bool) -> Vec<Effect> {
        let kind = text(item, "type").unwrap_or("");
        match kind {
            "userMessage" => {
                let uuid = text(item, "clientId").unwrap_or("");
                let push =
                    self.pushes.iter_mut().find(|push| push.said && push.uuid == uuid && !push.started);
                let Some(push) = push else { return Vec::new() };
                push.started = true;
                vec![Effect::Tell(ProviderEvent::Started { id: push.push.id.clone() })]
            }
            "agentMessage" if is_completed => {
                self.text = text(item, "text").filter(|text| !text.is_empty()).map(str::to_owned);
                Vec::new()
            }
            "contextCompaction" if !is_completed => vec![progress("compacting the conversation")],
            _ => match (tool_name(item, kind), text(item, "id")) {
                (Some(name), Some(id)) => {
                    let time = question_time(&name, &item["arguments"]);
                    self.tool(name, id, time, is_completed)
                }
                _ => Vec::new(),
            },
        }
    }

    fn tool(&mut self, name: String, id: &str, time: Option<Ms>, is_completed: bool) -> Vec<Effect> {
        let id = id.to_owned();
        if is_completed {
            let was_there = self.tools.remove(&id).is_some();
            return was_there.then_some(Effect::Tell(ProviderEvent::ToolEnded { id })).into_iter().collect();
        }
        let is_new = self.tools.len() < MAX_TOOLS && !self.tools.contains_key(&id);
        if is_new {
            self.tools.insert(id.clone(), time);
        }
        let started = ProviderEvent::ToolStarted { id, name, timeout: None };
        is_new.then_some(Effect::Tell(started)).into_iter().collect()
    }

    fn retrying(&mut self, error: &Value) -> Vec<Effect> {
        let (_, said) = judge(error);
        let now = (self.clock)();
        let since = *self.missed.get_or_insert(now);
        let missed = Ms(u64::try_from(now.saturating_sub(since)).unwrap_or(0).saturating_mul(1_000));
        if missed >= self.patience {
            let mut effects = self.interrupt();
            let reason = format!("{said}; codex has tried in vain for {missed}");
            effects.extend(self.end(TurnError::new(ErrorClass::Transient, reason)));
            return effects;
        }
        // codex does not say when it tries again: at once, and then ever later.
        vec![Effect::Tell(ProviderEvent::Retrying { reason: said, wait: Ms(0) })]
    }

    fn turn_completed(&mut self, turn: &Value) -> Vec<Effect> {
        self.turn = None;
        self.missed = None;
        let ended = std::mem::take(&mut self.tools).into_keys();
        let mut effects: Vec<Effect> =
            ended.map(|id| Effect::Tell(ProviderEvent::ToolEnded { id })).collect();
        match text(turn, "status") {
            Some("failed") => {
                let (class, reason) = judge(&turn["error"]);
                let is_transient = class == ErrorClass::Transient;
                let resets_at = self.resets_at.take().filter(|_| is_transient);
                let left = resets_at.and_then(|at| u64::try_from(at.saturating_sub((self.clock)())).ok());
                let retry_after = left.map(|left| Ms(left.saturating_mul(1_000)));
                effects.extend(self.end(TurnError { class, reason, retry_after }));
            }
            Some("interrupted") => {
                let reason = "codex interrupted the turn";
                effects.extend(self.end(TurnError::new(ErrorClass::Transient, reason)));
            }
            _ => {
                let text = self.text.take();
                let (covered, left) =
                    std::mem::take(&mut self.pushes).into_iter().partition(|push| push.started);
                self.pushes = left;
                let covered: VecDeque<Pushed> = covered;
                let covers: Vec<String> = covered.into_iter().map(|push| push.push.id).collect();
                // A compaction is a turn without messages and without a word.
                if text.is_some() || !covers.is_empty() {
                    effects.push(Effect::Tell(ProviderEvent::Result(Answer {
                        text,
                        covers,
                        ..Answer::default()
                    })));
                }
                // One that came too late for the turn that it was meant for is said again.
                let id = turn["id"].as_str().map(str::to_owned);
                let late = self.pushes.iter_mut().filter(|push| push.turn.is_some() && push.turn == id);
                late.for_each(|push| push.said = false);
                effects.extend(self.say());
            }
        }
        effects
    }

    fn interrupt(&mut self) -> Vec<Effect> {
        let (Some(thread), Some(turn)) = (self.ready, self.turn.clone()) else { return Vec::new() };
        self.requests += 1;
        let params = json!({"threadId": thread.to_string(), "turnId": turn});
        vec![Effect::Write(json!({"id": self.requests, "method": "turn/interrupt", "params": params}))]
    }

    fn end(&mut self, error: TurnError) -> Vec<Effect> {
        self.over = true;
        vec![Effect::Tell(ProviderEvent::Error(error))]
    }
}

impl Dialect for Wire {
    fn open(&mut self) -> Vec<Effect> {
        let client =
            json!({"name": "lamplighter", "title": "Lamplighter", "version": env!("CARGO_PKG_VERSION")});
        // Texts arrive whole when they are complete; of the pieces, only that they come matters.
        let opt_out = json!(["thread/tokenUsage/updated", "item/commandExecution/outputDelta"]);
        let capabilities = json!({"optOutNotificationMethods": opt_out});
        let params = json!({"clientInfo": client, "capabilities": capabilities});
        vec![self.request("initialize", params, Asked::Initialize)]
    }

    fn push(&mut self, push: Push) -> Vec<Effect> {
        self.pushes.push_back(Pushed { push, uuid: String::new(), said: false, turn: None, started: false });
        self.say()
    }

    fn line(&mut self, line: &str) -> Vec<Effect> {
        if self.over {
            return Vec::new();
        }
        with_a_sign_of_life(serde_json::from_str(line).map(|line| self.on_line(&line)).unwrap_or_default())
    }

    fn exited(&mut self, exit: &Exit, unsaid: usize) -> Vec<Effect> {
        if self.over {
            return Vec::new();
        }
        let told = exit.told();
        if self.pushes.is_empty() && unsaid == 0 {
            self.over = true;
            return vec![progress(&format!("codex ended while idle {told}"))];
        }
        const FOR_GOOD: [&str; 4] =
            ["unexpected argument", "error loading config", "invalid value", "failed to load configuration"];
        let said = exit.stderr.to_lowercase();
        let is_for_good = FOR_GOOD.iter().any(|words| said.contains(words));
        let class = if is_for_good { ErrorClass::Permanent } else { ErrorClass::Crashed };
        self.end(TurnError::new(class, format!("codex ended in mid-turn {told}")))
    }

    fn silent(&mut self, time: Ms) -> Vec<Effect> {
        let mut effects = self.interrupt();
        let reason = format!("no sign of life from codex for {time}");
        effects.extend(self.end(TurnError::new(ErrorClass::Transient, reason)));
        effects
    }

    fn is_waiting(&self) -> bool {
        !self.over && !self.pushes.is_empty()
    }

    fn tools(&self) -> Vec<Option<Ms>> {
        self.tools.values().copied().collect()
    }
}

/// The tool servers in codex's form. None asks: there is nobody to answer.
fn servers(servers: &[McpServer]) -> Value {
    let entries = servers.iter().map(|server| {
        let McpServer { name, command, args, env } = server;
        // Ours ask people, who take their time.
        let time = if name == OWN_SERVER { MAX_QUESTION_WAIT.0 + CALL_SLACK.0 } else { TOOL_TIMEOUT.0 };
        let entry = json!({
            "command": command, "args": args, "env": env,
            "default_tools_approval_mode": "approve", "tool_timeout_sec": time / 1_000,
        });
        (name.clone(), entry)
    });
    entries.collect::<Map<String, Value>>().into()
}

/// What an item is called as a tool, if it is one.
fn tool_name(item: &Value, kind: &str) -> Option<String> {
    Some(match kind {
        "commandExecution" => "shell".to_owned(),
        "fileChange" => "apply_patch".to_owned(),
        "webSearch" => "web_search".to_owned(),
        "mcpToolCall" => {
            let (server, tool) = (text(item, "server")?, text(item, "tool")?);
            format!("mcp__{}__{}", words::plain(server), words::plain(tool))
        }
        "dynamicToolCall" | "collabAgentToolCall" | "subAgentActivity" | "imageGeneration" | "sleep" => {
            kind.to_owned()
        }
        _ => return None,
    })
}

fn is_unsteerable(error: &Value) -> bool {
    let info = |value: &Value| value["codexErrorInfo"].get("activeTurnNotSteerable").is_some();
    info(error)
        || info(&error["data"])
        || text(error, "message").is_some_and(|said| said.contains("not steerable"))
}

/// Whether another try can help against what a turn failed with, and the words for it.
fn judge(error: &Value) -> (ErrorClass, String) {
    let info = &error["codexErrorInfo"];
    if let Some((_, detail)) = info.as_object().and_then(|fields| fields.iter().next()) {
        let status = detail["httpStatusCode"].as_u64().and_then(|status| u16::try_from(status).ok());
        return (words::class(status, None), words::service(status, None));
    }
    let kind = info.as_str().unwrap_or("other");
    if kind == "other" {
        // The service's own answer is quoted in the message: of that only the kind is read.
        let answer: Value = serde_json::from_str(text(error, "message").unwrap_or("")).unwrap_or_default();
        let kind = text(&answer["error"], "type").map(words::plain);
        let said = kind.as_deref().unwrap_or("other");
        return (words::class(None, kind.as_deref()), words::service(None, Some(said)));
    }
    let class = match kind {
        "rateLimitExceeded"
        | "usageLimitExceeded"
        | "serverOverloaded"
        | "internalServerError"
        | "flexUnavailable" => ErrorClass::Transient,
        _ => ErrorClass::Permanent,
    };
    (class, words::service(None, Some(kind)))
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

fn progress(said: &str) -> Effect {
    Effect::Tell(ProviderEvent::Progress(said.to_owned()))
}

#[cfg(test)]
mod tests;
