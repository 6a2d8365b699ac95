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
      <source>font-weight: bold</source>
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
      <source>background-color: #fff4d6; color: #1c1c1c; padding: 4px</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Report</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Report: read or edit</source>
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
      <source>What was found; the model's draft is kept beside it.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>&amp;Impression:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The conclusion; the model's draft is kept beside it.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Take the draft again</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The model's words in the place of yours</source>
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
      <source>&amp;Save as text…</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Report and chat with where they come from, as a text file</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>&amp;What the model saw</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The pictures that the model was given of this scan</source>
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
      <source>As&amp;k</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Ask (Return); questions wait in line</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Where the model looked</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>&amp;Method:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>How it is found where the model looked</source>
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
      <source>&amp;Threshold:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Times an even spread below which nothing is drawn.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>By slice: axial, coronal, sagittal</source>
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
      <source>Hide</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Take the heatmap off the views (Ctrl+Shift+H)</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Export</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Text</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Report as plain text</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Markdown</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Report with key images</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>PDF</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Report with key images, for people</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>JSON</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Report with all edits, for programs</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>FHIR</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The report for hospital systems (FHIR R4)</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>DICOM SR</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Structured Report, on the patient of the DICOM series</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>DICOM PDF</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Encapsulated PDF, on the patient of the DICOM series</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Key images</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Secondary Captures with the heatmap</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Heatmap</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Parametric Map of the chosen sentence's heatmap</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Region</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Segmentation: where the chosen sentence's heatmap is strongest</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>E&amp;xport…</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Write the ticked kinds into a new folder</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Many scans</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>&amp;Read all volumes…</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>A report of every scan in the scene, one folder each; what is there is skipped</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Read a folder…</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>A report of every scan under a folder, one folder each; what is there is skipped</source>
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
      <source>Edited; the model's draft is kept in the scene.</source>
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
      <source>Where to write the report</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The folder with the scans</source>
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
  </context>
  <context>
    <name>MedVLMReaderSetUp</name>
    <message>
      <source>Set-up and models</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Install into:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Where the packages go that the models need. A separate environment leaves Slicer as it is.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Made by:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The Python, 3.11 to 3.13, that makes the separate environment.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Folder:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>The folder of the separate environment.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Choose the folder of the separate environment</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>…</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Wheels:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>A folder of .whl files to install from without a network; empty for the network.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>A folder, to install without a network</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Choose the folder of wheels</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Choose the folder of .whl files</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Proxy:</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Address of a proxy; empty for the system's own.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>http://proxy.example:8080</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Also what int8 and NF4 need</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Smaller precisions let larger models fit.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Install</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Install what is listed above</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Stop installing</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Stop</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Stop installing; what is there stays</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Look again</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>See what is installed</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Remove the separate environment</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Remove</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Delete the separate environment</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Details</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>What the installing programs print</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Models</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Models, with their size and licence</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Another model of the hub</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Name of another model of the Hugging Face hub</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>OWNER/NAME of another model of the hub</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Token for gated models</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Your token of the Hugging Face hub, for gated models; used for fetching and kept nowhere.</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Token, for gated models</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Fetch…</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Says size and licence first</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Stop fetching</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Stop fetching; what has arrived is kept</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Remove the chosen model</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Delete what is on this machine of the chosen model</source>
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
  <context>
    <name>MedVLMReaderQt.many</name>
    <message>
      <source>Where to keep the readings</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Starting the reader</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>MedVLM Reader</source>
      <translation type="unfinished" />
    </message>
  </context>
  <context>
    <name>MedVLMReaderQt.set_up</name>
    <message>
      <source>Slicer's own Python</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>A separate environment</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Delete the separate environment with all its packages?</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Folder</source>
      <translation type="unfinished" />
    </message>
    <message>
      <source>Delete all that is on this machine of {model}?</source>
      <translation type="unfinished" />
    </message>
  </context>
</TS>
