//! What the tools take. The names and the required ones are NanoClaw's, so that instructions written for it hold.
//!
//! Invariant: every bound that a caller can run into is said in the description that the agent reads.

use std::collections::BTreeMap;

use rmcp::schemars::{self, JsonSchema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Arguments of `send_message`.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct SendMessage {
    /// A destination's name; without it, the chat of this conversation.
    pub(super) to: Option<String>,
    /// What to say.
    pub(super) text: String,
}

/// Arguments of `send_file`.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct SendFile {
    /// A destination's name; without it, the chat of this conversation.
    pub(super) to: Option<String>,
    /// The file: in your folder, absolute or relative to it, or below /tmp. At most 50 MiB.
    pub(super) path: String,
    /// A text to go with it.
    pub(super) text: Option<String>,
    /// The name that the recipient sees; without it, the file's own.
    pub(super) filename: Option<String>,
}

/// Arguments of `edit_message`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct EditMessage {
    /// The message's id: the number that sending it returned.
    pub(super) message_id: i64,
    /// The new text.
    pub(super) text: String,
}

/// Arguments of `add_reaction`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct AddReaction {
    /// The message's id: the number in the prompt, or the one that sending it returned.
    pub(super) message_id: i64,
    /// The emoji, or its name on the platform.
    pub(super) emoji: String,
}

/// Arguments of `send_card`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SendCard {
    /// The card: `title`, `description`, `children` (texts) and `actions` (each with `label` and `url`).
    pub(super) card: Map<String, Value>,
    /// What is shown where cards cannot be.
    pub(super) fallback_text: Option<String>,
}

/// Arguments of `ask_user_question`.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct AskUserQuestion {
    /// A short heading.
    pub(super) title: String,
    /// The question.
    pub(super) question: String,
    /// 1 to 20 options to choose from.
    pub(super) options: Vec<QuestionOption>,
    /// How many seconds to wait for the answer, 1 to 604800; 300 without it.
    pub(super) timeout: Option<f64>,
}

/// An option of a question.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum QuestionOption {
    /// Its label, which is the answer too.
    Label(String),
    /// With more than a label.
    #[serde(rename_all = "camelCase")]
    Full {
        /// What is shown, at most 80 characters.
        label: String,
        /// What is shown once it was chosen.
        selected_label: Option<String>,
        /// What is returned as the answer.
        value: Option<String>,
    },
}

/// Arguments of `schedule_task`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ScheduleTask {
    /// What you will be asked to do.
    pub(super) prompt: String,
    /// The first time, ISO 8601: with an offset, or in your time zone without one.
    pub(super) process_after: String,
    /// A cron expression of five fields, in your time zone, for a task that comes again.
    pub(super) recurrence: Option<String>,
    /// A bash script that is run first; its last line is JSON with `wakeAgent` and perhaps `data`.
    pub(super) script: Option<String>,
}

/// Arguments of `list_tasks`.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ListTasks {
    /// Only tasks of this status: `pending` or `paused`.
    pub(super) status: Option<String>,
}

/// Arguments of `update_task`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct UpdateTask {
    /// The task's id, as `list_tasks` shows it.
    pub(super) task_id: String,
    /// The new prompt.
    pub(super) prompt: Option<String>,
    /// The new cron expression; an empty one makes the task come once.
    pub(super) recurrence: Option<String>,
    /// The new time of the next run.
    pub(super) process_after: Option<String>,
    /// The new script; an empty one removes it.
    pub(super) script: Option<String>,
}

/// Arguments of `cancel_task`, `pause_task` and `resume_task`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct TaskId {
    /// The task's id, as `list_tasks` shows it.
    pub(super) task_id: String,
}

/// Arguments of `create_agent`.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct CreateAgent {
    /// Its name, 1 to 64 characters.
    pub(super) name: String,
    /// What it is told about its work.
    pub(super) instructions: Option<String>,
}

/// Arguments of `install_packages`.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct InstallPackages {
    /// Names of Debian packages.
    #[serde(default)]
    pub(super) apt: Vec<String>,
    /// Names of npm packages.
    #[serde(default)]
    pub(super) npm: Vec<String>,
    /// Why they are needed.
    pub(super) reason: Option<String>,
}

/// Arguments of `add_mcp_server`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct AddMcpServer {
    /// What it is called: letters, digits, dash and underscore.
    pub(super) name: String,
    /// The program that is run.
    pub(super) command: String,
    /// Its arguments.
    #[serde(default)]
    pub(super) args: Vec<String>,
    /// Variables of its environment.
    #[serde(default)]
    pub(super) env: BTreeMap<String, String>,
}
