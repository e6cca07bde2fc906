//! Tasks: asked for by rows of the system, listed from what the host has written.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lamplighter::base::Wall;
use lamplighter::session::rows::MAX_CONTENT_BYTES;
use lamplighter::session::{InboundRow, NewOutbound, ids, timestamp};
use serde_json::{Map, Value, json};

use super::arguments::{ListTasks, ScheduleTask, TaskId, UpdateTask};
use super::desk::{Desk, Target, row, said};
use super::{Done, Refusal, when};
use crate::dispatch::random;
use crate::launch::{epoch_ms, wall_now};

/// So much of a prompt is shown in a list, in characters.
const SHOWN_CHARS: usize = 80;
/// Longest id of a task, in bytes.
const MAX_ID: usize = 256;

pub(super) fn schedule(desk: &mut Desk, call: ScheduleTask) -> Done {
    said(&call.prompt, "the prompt")?;
    let at = when::parse(&call.process_after, &desk.zone, wall_now())?;
    let recurrence = when::recurrence(call.recurrence.as_deref())?;
    let script = call.script.filter(|script| !script.trim().is_empty());
    let target = Target { address: desk.own_address()?, name: String::new(), in_reply_to: None };
    let id = ids::task(epoch_ms(wall_now()), random());
    let (platform, channel) = (&target.address.platform_id, &target.address.channel_type);
    let content = json!({
        "action": "schedule_task", "taskId": id, "prompt": call.prompt, "script": script,
        "processAfter": at.iso, "recurrence": recurrence, "platformId": platform, "channelType": channel,
        "threadId": target.address.thread_id,
    });
    let size = content.to_string().len();
    if size > MAX_CONTENT_BYTES {
        return Err(format!("prompt and script are too long together: {size} bytes").into());
    }
    desk.send(&NewOutbound { id: id.clone(), ..row(&target, "system", &content) })?;
    let again = recurrence.map(|cron| format!(", again by {cron:?}")).unwrap_or_default();
    let remark = at.remark.map(|remark| format!(" ({remark})")).unwrap_or_default();
    Ok(format!("Task {id} requested for {}{again}{remark}", at.local))
}

pub(super) fn list(desk: &mut Desk, call: &ListTasks) -> Done {
    let wanted = call.status.as_deref().filter(|status| !status.is_empty() && *status != "all");
    if let Some(status) = wanted.filter(|status| !["pending", "paused"].contains(status)) {
        return Err(format!("there is no status {status:?}; there are pending and paused").into());
    }
    let tasks = live(desk)?;
    let lines: Vec<String> = tasks
        .values()
        .filter(|row| wanted.is_none_or(|wanted| row.status.as_deref() == Some(wanted)))
        .map(|row| line(desk, row))
        .collect();
    Ok(if lines.is_empty() { "There are no tasks.".to_owned() } else { lines.join("\n") })
}

fn line(desk: &Desk, row: &InboundRow) -> String {
    let due = row.process_after.as_deref().and_then(timestamp::parse);
    let due = due.and_then(|Wall(micros)| Timestamp::from_microsecond(micros).ok());
    let due = due.map_or_else(|| "at once".to_owned(), |at| when::shown(at, &desk.zone));
    let again = row.recurrence.as_deref().map(|cron| format!(", again by {cron:?}")).unwrap_or_default();
    let content: Value = serde_json::from_str(&row.content).unwrap_or_default();
    let prompt = content.get("prompt").and_then(Value::as_str).unwrap_or_default();
    let one_line: String = prompt.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown: String = one_line.chars().take(SHOWN_CHARS).collect();
    let id = row.series_id.as_deref().unwrap_or(&row.id);
    format!("{id}: {}, {due}{again}: {shown}", row.status.as_deref().unwrap_or("pending"))
}

/// The newest live row of each series.
fn live(desk: &mut Desk) -> Result<BTreeMap<String, InboundRow>, Refusal> {
    let mut tasks = BTreeMap::new();
    for row in desk.inbound.tasks()? {
        let live = matches!(row.status.as_deref(), Some("pending" | "paused"));
        if live && !desk.outbound.is_acked(&row.id)? {
            // They come oldest first.
            tasks.insert(row.series_id.clone().unwrap_or_else(|| row.id.clone()), row);
        }
    }
    Ok(tasks)
}

pub(super) fn update(desk: &mut Desk, call: UpdateTask) -> Done {
    let mut content = Map::new();
    content.insert("action".to_owned(), "update_task".into());
    content.insert("taskId".to_owned(), call.task_id.clone().into());
    let mut remark = None;
    if let Some(prompt) = &call.prompt {
        said(prompt, "the prompt")?;
        content.insert("prompt".to_owned(), prompt.clone().into());
    }
    if let Some(script) = call.script {
        let script = Some(script).filter(|script| !script.trim().is_empty());
        content.insert("script".to_owned(), script.into());
    }
    if call.recurrence.is_some() {
        content.insert("recurrence".to_owned(), when::recurrence(call.recurrence.as_deref())?.into());
    }
    if let Some(at) = &call.process_after {
        let at = when::parse(at, &desk.zone, wall_now())?;
        remark = at.remark;
        content.insert("processAfter".to_owned(), at.iso.into());
    }
    if content.len() == 2 {
        return Err("nothing is to be changed; give prompt, processAfter, recurrence or script".into());
    }
    request(desk, &call.task_id, &Value::Object(content))?;
    let remark = remark.map(|remark| format!(" ({remark})")).unwrap_or_default();
    Ok(format!("Change of task {} requested{remark}", call.task_id))
}

/// Cancels, pauses or resumes.
pub(super) fn change(desk: &mut Desk, call: &TaskId, action: &'static str) -> Done {
    request(desk, &call.task_id, &json!({ "action": action, "taskId": call.task_id }))?;
    let verb = action.trim_end_matches("_task");
    Ok(format!("Request to {verb} task {} sent", call.task_id))
}

/// Whether this is a task that was asked for and that the host has not written yet.
fn is_requested(desk: &mut Desk, task: &str) -> Result<bool, Refusal> {
    let Some(content) = desk.outbound.content_of(task)? else { return Ok(false) };
    let content: Value = serde_json::from_str(&content).unwrap_or_default();
    let is_task = content.get("action").is_some_and(|action| action == "schedule_task");
    Ok(is_task && desk.inbound.delivered(task)?.is_none())
}

fn request(desk: &mut Desk, task: &str, content: &Value) -> Result<(), Refusal> {
    if task.is_empty() || task.len() > MAX_ID {
        return Err("taskId is no id of a task; list_tasks shows them".into());
    }
    // Before the rows: the host writes the task's row first, and then that it has done so.
    let is_requested = is_requested(desk, task)?;
    let is_live = live(desk)?.into_iter().any(|(series, row)| series == task || row.id == task);
    let known = is_requested || is_live;
    if !known {
        return Err(format!("there is no task {task:?}; list_tasks shows those that there are").into());
    }
    let target = Target { address: Default::default(), name: String::new(), in_reply_to: None };
    let id = ids::system(epoch_ms(wall_now()), random());
    desk.send(&NewOutbound { id, ..row(&target, "system", content) })?;
    Ok(())
}
