<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE TS>
<TS version="2.1" language="en_US" sourcelanguage="en_US">
  <context>
    <name>MedVLMReader</name>
    <message>
      <source>Scan and model</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Vo&amp;lume:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The scan to read: the one that the slice views show, unless you choose another.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Mo&amp;del:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Models that write reports and answers.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>&amp;Precision:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>In how many bits the language model is kept. Auto takes the best that fits.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Read</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Draft a report of this scan (Ctrl+Return)</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Stop</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Stop what is being done (Esc)</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Free memor&amp;y</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>End the reader; the next question starts it again.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>How far it is</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Report</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Click a sentence to see where the model looked for it.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Fi&amp;ndings:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Your findings; the model's draft is kept.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>&amp;Impression:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Your impression; the model's draft is kept.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Copy</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Report and chat with where they come from (Ctrl+Shift+C)</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Report and chat with where they come from, as a text file</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>&amp;Save as text…</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The pictures that the model was given of this scan</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>&amp;What the model saw</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>What the model saw</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Questions</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Questions and answers</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>&amp;About:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>What the question is about.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Re&amp;gion:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The ROI that the question is about.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Question</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Is there a nodule in the right lung?</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Ask about what is chosen above (Return)</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>As&amp;k</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Where the model looked</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Me&amp;thod:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>How it is worked out where the model looked</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>&amp;Opacity:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Opacity of the heatmap; what lies in front stays as it is.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Fro&amp;m:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Times an even spread below which nothing is drawn.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Axial slices' shares of the heatmap</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>How the axial slices share the heatmap</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Coronal slices' shares of the heatmap</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>How the coronal slices share the heatmap</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Sagittal slices' shares of the heatmap</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>How the sagittal slices share the heatmap</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>S&amp;upported by the image?</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Paint over the highlighted region and see whether the words lose their likelihood.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Plot &amp;by slice</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The curves as tables and a chart in the scene</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Take the heatmap off the views (Ctrl+Shift+H)</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Hide</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Manual</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Tutorial, what heatmaps mean, troubleshooting: in a window, without a network (F1)</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>MedVLM Reader</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Drafts a report of a CT or MR volume with a medical vision-language model on this machine, answers questions, and shows where the model looked. Research software. Not for clinical use.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>See the README for the papers whose models are implemented.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>A model's folder…</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Auto</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The model's own</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The axial slice</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The coronal slice</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The sagittal slice</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The whole scan</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>A region (ROI)</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Save as text</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Relevance</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Attention</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The model's folder</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Edited; the model's draft is kept in the scene.</source>
      <translation type="unfinished" />
    </message>
  </context>
  <context>
    <name>MedVLMReaderQt.manual</name>
    <message>
      <source>MedVLM Reader: manual</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Manual</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>&amp;Start</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>&amp;Back</source>
      <translation type="unfinished" />
    </message>
  </context>
</TS>
